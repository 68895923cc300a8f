// Command boltool is the real bbolt behind a few subcommands. The interop tests hold asyncmig's own
// bolt engine against it.
//
// Only bbolt's stable API is used, so that it compiles with 1.3.6 (Debian 12) and with later releases.
//
// Exit codes: 0 fine, 1 the answer is "no" (errors found, locked, operation refused), 2 the question
// could not be asked (usage, no such file, lock timeout), 3 bbolt crashed on the file.
package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	bolt "go.etcd.io/bbolt"
)

const (
	exitOK      = 0
	exitNo      = 1
	exitUnable  = 2
	exitCrashed = 3
)

const (
	lockTimeout    = 5 * time.Second
	tryLockTimeout = 300 * time.Millisecond

	// maxErrors bounds check: a page that points back at itself makes Tx.Check report for ever.
	maxErrors = 1000
	// maxStack makes such a cycle fail early; Go's default lets it eat a gigabyte first.
	maxStack = 128 << 20
	// maxHeap ends a cursor that goes down such a cycle: it never returns, and takes a gigabyte every
	// few seconds. Reading an honest file takes a small part of this.
	maxHeap = 256 << 20
)

const usage = `usage: boltool check FILE
       boltool check-stream - < FILES
       boltool dump FILE
       boltool apply FILE [-page-size N] [-no-freelist-sync] [-map-freelist] < SCRIPT
       boltool hold FILE [-read-only]
       boltool trylock FILE [-read-only]
`

// command is one subcommand; flags are what follows FILE.
type command func(file string, flags []string) (int, error)

var commands = map[string]command{
	"check":        superviseCheck,
	"check-worker": check,
	"check-stream": checkStream,
	"dump":         dump,
	"apply":        apply,
	"hold":         hold,
	"trylock":      tryLock,
}

func main() {
	os.Exit(run(os.Args[1:]))
}

// run turns errors and panics into exit codes. A fault in the mapped file (a page beyond its end) is
// a signal and would kill the process; SetPanicOnFault makes it a panic, but in this goroutine only.
func run(args []string) (code int) {
	debug.SetPanicOnFault(true)
	debug.SetMaxStack(maxStack)
	defer func() {
		if cause := recover(); cause != nil {
			fmt.Fprintln(os.Stderr, "panic:", cause)
			code = exitCrashed
		}
	}()
	if len(args) < 2 || commands[args[0]] == nil {
		fmt.Fprint(os.Stderr, usage)
		return exitUnable
	}
	code, err := commands[args[0]](args[1], args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "boltool:", err)
	}
	return code
}

// limitHeap ends this process when reading the file takes more memory than any sound file needs.
func limitHeap() {
	var stats runtime.MemStats
	for stats.HeapSys < maxHeap {
		time.Sleep(20 * time.Millisecond)
		runtime.ReadMemStats(&stats)
	}
	fmt.Fprintln(os.Stderr, "panic: bbolt goes round in a circle and takes ever more memory")
	os.Exit(exitCrashed)
}

// noFlags refuses arguments of a command that takes none.
func noFlags(flags []string) error {
	if len(flags) > 0 {
		return fmt.Errorf("unexpected arguments %q", flags)
	}
	return nil
}

// readOnlyFlag parses the only flag of hold and trylock.
func readOnlyFlag(name string, args []string) (bool, error) {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	readOnly := set.Bool("read-only", false, "take the shared lock")
	if err := set.Parse(args); err != nil {
		return false, err
	}
	return *readOnly, noFlags(set.Args())
}

// openExisting opens a file that must be there: bbolt passes O_CREATE even when it opens read-only,
// and would leave an empty file behind.
//
// NoFreelistSync is set because a writable open otherwise writes a freelist into a file that has
// none, and looking at a file must not change it.
func openExisting(file string, readOnly bool, timeout time.Duration) (*bolt.DB, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, err
	}
	return bolt.Open(file, 0o600, &bolt.Options{
		ReadOnly:       readOnly,
		Timeout:        timeout,
		NoFreelistSync: true,
	})
}

// openCode tells "bbolt rejects this file" from "nobody could look".
func openCode(err error) int {
	var path *os.PathError
	if errors.Is(err, bolt.ErrTimeout) || errors.As(err, &path) {
		return exitUnable
	}
	return exitNo
}

// ---- check

// superviseCheck runs check in a process of its own. Tx.Check works in a goroutine that nobody can
// recover from outside, and a stack overflow cannot be recovered at all: either ends the process with
// Go's exit code 2. The worker watches its stdin and so does not outlive this process.
func superviseCheck(file string, flags []string) (int, error) {
	if err := noFlags(flags); err != nil {
		return exitUnable, err
	}
	self, err := os.Executable()
	if err != nil {
		return exitUnable, err
	}
	worker := exec.Command(self, "check-worker", file)
	var stderr bytes.Buffer
	worker.Stdout, worker.Stderr = os.Stdout, &stderr
	if _, err := worker.StdinPipe(); err != nil {
		return exitUnable, err
	}
	err = worker.Run()
	os.Stderr.Write(stderr.Bytes())
	return workerCode(err, stderr.Bytes())
}

// workerCode tells a worker that reported "unable" from one that Go's runtime ended, also with 2.
func workerCode(err error, stderr []byte) (int, error) {
	var exit *exec.ExitError
	if err == nil {
		return exitOK, nil
	}
	if !errors.As(err, &exit) {
		return exitUnable, err
	}
	switch code := exit.ExitCode(); {
	case code == exitNo:
		return exitNo, nil
	case code == exitUnable && bytes.HasPrefix(stderr, []byte("boltool: ")):
		return exitUnable, nil
	}
	return exitCrashed, nil
}

// check prints what bbolt's own checker finds, and if that is nothing, what a walk finds: the checker
// skips inline buckets and never searches for a key. A tree that is known to be broken is not walked,
// because a cursor can go round in it for ever.
func check(file string, _ []string) (int, error) {
	go exitWithParent()
	go limitHeap()
	return checkFile(file, os.Stdout)
}

func checkFile(file string, out io.Writer) (int, error) {
	db, err := openExisting(file, true, lockTimeout)
	if err != nil {
		code := openCode(err)
		if code == exitNo {
			fmt.Fprintln(out, "open:", err)
			return code, nil
		}
		return code, err
	}
	defer db.Close()
	errorCount := 0
	report := func(err error) {
		fmt.Fprintln(out, err)
		if errorCount++; errorCount == maxErrors {
			fmt.Fprintln(out, "too many errors")
			os.Exit(exitNo) // not a return: Tx.Check is still reading the mapping
		}
	}
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			report(err)
		}
		if errorCount == 0 {
			walk(tx.Cursor().Bucket(), nil, report)
		}
		return nil
	})
	if err != nil {
		report(err)
	}
	if errorCount > 0 {
		return exitNo, nil
	}
	return exitOK, nil
}

// checkStream checks one file after the other, for thousands of files that should all be sound. It answers each
// name that comes in on a line with one JSON text: what is wrong, "" if nothing is. On a file that is badly
// damaged it may end: check says more.
func checkStream(_ string, flags []string) (int, error) {
	if err := noFlags(flags); err != nil {
		return exitUnable, err
	}
	go limitHeap()
	answers := json.NewEncoder(os.Stdout)
	names := bufio.NewScanner(os.Stdin)
	for names.Scan() {
		var found strings.Builder
		code, err := checkFile(names.Text(), &found)
		if err != nil {
			fmt.Fprintln(&found, err)
		} else if code != exitOK && found.Len() == 0 {
			fmt.Fprintln(&found, "code", code)
		}
		if err := answers.Encode(found.String()); err != nil {
			return exitUnable, err
		}
	}
	return exitOK, names.Err()
}

// exitWithParent ends this process once the other end of its stdin is gone.
func exitWithParent() {
	io.Copy(io.Discard, os.Stdin)
	os.Exit(exitUnable)
}

// sink keeps the compiler from dropping the reads that walk makes.
var sink uint32

// walk touches every byte of every key and value, and looks each key up again: a wrong separator in a
// branch page shows only in a search.
func walk(bucket *bolt.Bucket, path []string, report func(error)) {
	var previous []byte
	cursor := bucket.Cursor()
	for key, value := cursor.First(); key != nil; key, value = cursor.Next() {
		here := append(path[:len(path):len(path)], name(key))
		if previous != nil && bytes.Compare(previous, key) >= 0 {
			report(fmt.Errorf("%q: key out of order", here))
		}
		previous = key
		sink ^= crc32.ChecksumIEEE(key) ^ crc32.ChecksumIEEE(value)
		if value != nil {
			if found := bucket.Get(key); !bytes.Equal(found, value) || found == nil {
				report(fmt.Errorf("%q: a search does not find the key", here))
			}
		} else if child := bucket.Bucket(key); child == nil {
			report(fmt.Errorf("%q: a search does not find the bucket", here))
		} else {
			walk(child, here, report)
		}
	}
}

// ---- dump

type bucketLine struct {
	Path     []string `json:"p"`
	Bucket   bool     `json:"b"`
	Sequence uint64   `json:"seq,omitempty"`
}

type textLine struct {
	Path  []string `json:"p"`
	Key   string   `json:"k"`
	Value string   `json:"v"`
}

type hexLine struct {
	Path  []string `json:"p"`
	Key   string   `json:"k"`
	Value string   `json:"vx"`
}

// dump prints the whole database as JSON lines, depth first in raw key order.
func dump(file string, flags []string) (int, error) {
	if err := noFlags(flags); err != nil {
		return exitUnable, err
	}
	go limitHeap()
	db, err := openExisting(file, true, lockTimeout)
	if err != nil {
		return openCode(err), err
	}
	defer db.Close()
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	err = db.View(func(tx *bolt.Tx) error {
		return dumpBucket(encoder, tx.Cursor().Bucket(), nil)
	})
	if err != nil {
		return exitNo, err
	}
	return exitOK, nil
}

func dumpBucket(encoder *json.Encoder, bucket *bolt.Bucket, path []string) error {
	return bucket.ForEach(func(key, value []byte) error {
		if value != nil {
			return encoder.Encode(valueLine(path, key, value))
		}
		child := bucket.Bucket(key)
		if child == nil {
			return fmt.Errorf("%q: a search does not find the bucket %q", path, name(key))
		}
		here := append(path[:len(path):len(path)], name(key))
		if err := encoder.Encode(bucketLine{here, true, child.Sequence()}); err != nil {
			return err
		}
		return dumpBucket(encoder, child, here)
	})
}

func valueLine(path []string, key, value []byte) interface{} {
	if printable(value) {
		return textLine{path, name(key), string(value)}
	}
	return hexLine{path, name(key), hex.EncodeToString(value)}
}

func name(raw []byte) string {
	if printable(raw) {
		return string(raw)
	}
	return "hex:" + hex.EncodeToString(raw)
}

// printable means UTF-8 without ASCII control characters. Others, such as U+0085, stay as they are.
func printable(raw []byte) bool {
	control := func(r rune) bool { return r < 0x20 || r == 0x7f }
	return utf8.Valid(raw) && bytes.IndexFunc(raw, control) < 0
}

// ---- apply

// operation is one line of a script; names, keys and values are hex.
type operation struct {
	Op    string   `json:"op"`
	Path  []string `json:"p"`
	Key   string   `json:"k"`
	Value string   `json:"v"`
	N     uint64   `json:"n"`
}

// apply runs a script of operations. When one fails, its transaction is rolled back; what was
// committed before stays. Nothing is synced: that does not change a byte of the file.
func apply(file string, args []string) (int, error) {
	options, err := applyOptions(args)
	if err != nil {
		return exitUnable, err
	}
	db, err := bolt.Open(file, 0o600, options)
	if err != nil {
		return openCode(err), err
	}
	db.NoSync = true
	if err := applyScript(db, json.NewDecoder(bufio.NewReader(os.Stdin))); err != nil {
		db.Close()
		return exitNo, err
	}
	if err := db.Close(); err != nil {
		return exitNo, err
	}
	return exitOK, nil
}

func applyOptions(args []string) (*bolt.Options, error) {
	set := flag.NewFlagSet("apply", flag.ContinueOnError)
	pageSize := set.Int("page-size", 0, "page size of a new file; 0 is the system's")
	noFreelistSync := set.Bool("no-freelist-sync", false, "do not store the freelist")
	mapFreelist := set.Bool("map-freelist", false, "hashmap instead of array freelist")
	if err := set.Parse(args); err != nil {
		return nil, err
	}
	options := &bolt.Options{
		Timeout:        lockTimeout,
		PageSize:       *pageSize,
		NoFreelistSync: *noFreelistSync,
	}
	if *mapFreelist {
		options.FreelistType = bolt.FreelistMapType
	}
	return options, noFlags(set.Args())
}

func applyScript(db *bolt.DB, script *json.Decoder) error {
	script.DisallowUnknownFields()
	var tx *bolt.Tx
	for number := 1; ; number++ {
		var op operation
		err := script.Decode(&op)
		if err == io.EOF {
			return commit(tx)
		}
		if err == nil {
			tx, err = step(db, tx, op)
		}
		if err != nil {
			if tx != nil {
				tx.Rollback()
			}
			return fmt.Errorf("operation %d (%s): %w", number, op.Op, err)
		}
	}
}

// step applies one operation and returns the transaction that is open after it, if any.
func step(db *bolt.DB, tx *bolt.Tx, op operation) (*bolt.Tx, error) {
	if op.Op == "commit" {
		return nil, commit(tx)
	}
	if tx == nil {
		var err error
		if tx, err = db.Begin(true); err != nil {
			return nil, err
		}
	}
	return tx, perform(tx, op)
}

func commit(tx *bolt.Tx) error {
	if tx == nil {
		return nil
	}
	return tx.Commit()
}

func perform(tx *bolt.Tx, op operation) error {
	path, err := unhex(op.Path...)
	if err != nil {
		return err
	}
	pair, err := unhex(op.Key, op.Value)
	if err != nil {
		return err
	}
	if len(path) == 0 {
		return errors.New("no bucket given")
	}
	switch op.Op {
	case "put":
		bucket, err := create(tx, path)
		if err != nil {
			return err
		}
		return bucket.Put(pair[0], pair[1])
	case "del":
		if bucket := find(tx, path); bucket != nil {
			return bucket.Delete(pair[0])
		}
		return nil
	case "mkbucket":
		_, err := create(tx, path)
		return err
	case "rmbucket":
		return remove(tx, path)
	case "seq":
		bucket, err := create(tx, path)
		if err != nil {
			return err
		}
		return bucket.SetSequence(op.N)
	}
	return errors.New("unknown operation")
}

func unhex(texts ...string) ([][]byte, error) {
	raw := make([][]byte, len(texts))
	for i, text := range texts {
		if text != strings.ToLower(text) {
			return nil, fmt.Errorf("%q: hex in upper case", text)
		}
		var err error
		if raw[i], err = hex.DecodeString(text); err != nil {
			return nil, fmt.Errorf("%q: %w", text, err)
		}
	}
	return raw, nil
}

// create opens the bucket at path and makes what is missing. The root is a bucket like any other.
func create(tx *bolt.Tx, path [][]byte) (*bolt.Bucket, error) {
	bucket := tx.Cursor().Bucket()
	for _, part := range path {
		var err error
		if bucket, err = bucket.CreateBucketIfNotExists(part); err != nil {
			return nil, err
		}
	}
	return bucket, nil
}

// find opens the bucket at path, or returns nil.
func find(tx *bolt.Tx, path [][]byte) *bolt.Bucket {
	bucket := tx.Cursor().Bucket()
	for _, part := range path {
		if bucket = bucket.Bucket(part); bucket == nil {
			return nil
		}
	}
	return bucket
}

func remove(tx *bolt.Tx, path [][]byte) error {
	last := len(path) - 1
	parent := find(tx, path[:last])
	if parent == nil {
		return nil
	}
	err := parent.DeleteBucket(path[last])
	if errors.Is(err, bolt.ErrBucketNotFound) {
		return nil
	}
	return err
}

// ---- locks

// hold keeps the file open, and with it the lock, until its stdin closes.
func hold(file string, args []string) (int, error) {
	readOnly, err := readOnlyFlag("hold", args)
	if err != nil {
		return exitUnable, err
	}
	db, err := openExisting(file, readOnly, lockTimeout)
	if err != nil {
		return exitUnable, err
	}
	defer db.Close()
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
	return exitOK, nil
}

// tryLock tells whether bbolt would get the lock now.
func tryLock(file string, args []string) (int, error) {
	readOnly, err := readOnlyFlag("trylock", args)
	if err != nil {
		return exitUnable, err
	}
	db, err := openExisting(file, readOnly, tryLockTimeout)
	if errors.Is(err, bolt.ErrTimeout) {
		fmt.Println("locked")
		return exitNo, nil
	}
	if err != nil {
		return exitUnable, err
	}
	defer db.Close()
	fmt.Println("free")
	return exitOK, nil
}
