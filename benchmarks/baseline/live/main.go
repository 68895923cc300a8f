// live: makes the calls of a live migration with containerd's own Go client.
//
//	live -address SOCKET -namespace NAME -concurrency N < calls.json
//
// The calls are those that a run of asyncmig has recorded (benchmarks/baseline/recording.py): phases, one after the other, of
// chains, N at a time, of calls, one after the other.  Prints as JSON how long it took, and how many objects did not exist, or
// existed already.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/content"
	"github.com/containerd/containerd/errdefs"
	"github.com/containerd/containerd/leases"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/snapshots"
	digest "github.com/opencontainers/go-digest"
)

// Call is one call.  What a field means depends on Op.
type Call struct {
	Op          string            `json:"op"`
	Name        string            `json:"name"`
	Snapshotter string            `json:"snapshotter"`
	Resource    string            `json:"resource"`
	Type        string            `json:"type"`
	Labels      map[string]string `json:"labels"`
	Paths       []string          `json:"paths"`
	Filters     []string          `json:"filters"`
	Objects     int               `json:"objects"` // of a list: how many of them are read
}

// Chain is calls of which each waits for the one before.
type Chain []Call

// Result is what is printed.
type Result struct {
	Seconds float64 `json:"seconds"`
	CPU     float64 `json:"cpu"`
	Calls   int64   `json:"calls"`
	Missing int64   `json:"missing"`
	Existed int64   `json:"existed"`
}

var errEnough = errors.New("as many as are wanted")

type replay struct {
	client   *containerd.Client
	snapshot map[string]snapshots.Snapshotter
	content  content.Store
	leases   leases.Manager
	result   Result
}

func main() {
	address := flag.String("address", "", "containerd's socket")
	namespace := flag.String("namespace", "buildkit", "namespace of all calls")
	concurrency := flag.Int("concurrency", 1, "chains at a time")
	flag.Parse()
	var phases [][]Chain
	if err := json.NewDecoder(os.Stdin).Decode(&phases); err != nil {
		fail(err)
	}
	ctx := namespaces.WithNamespace(context.Background(), *namespace)
	var before syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &before) // without reading the calls
	start := time.Now()
	client, err := containerd.New(*address)
	if err != nil {
		fail(err)
	}
	r := &replay{client: client, content: client.ContentStore(), leases: client.LeasesService()}
	r.snapshot = snapshotters(client, phases)
	for _, phase := range phases {
		if err := r.phase(ctx, phase, *concurrency); err != nil {
			fail(err)
		}
	}
	client.Close()
	r.result.Seconds = time.Since(start).Seconds()
	var after syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	r.result.CPU = cpu(after) - cpu(before)
	json.NewEncoder(os.Stdout).Encode(r.result)
}

func cpu(usage syscall.Rusage) float64 {
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
}

// snapshotters has one for each name that is used: shared, as one is in BuildKit.
func snapshotters(client *containerd.Client, phases [][]Chain) map[string]snapshots.Snapshotter {
	found := map[string]snapshots.Snapshotter{}
	for _, phase := range phases {
		for _, chain := range phase {
			for _, call := range chain {
				if name := call.Snapshotter; name != "" && found[name] == nil {
					found[name] = client.SnapshotService(name)
				}
			}
		}
	}
	return found
}

func (r *replay) phase(ctx context.Context, chains []Chain, concurrency int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var workers sync.WaitGroup
	var next int64 = -1
	failures := make(chan error, concurrency)
	for i := 0; i < concurrency; i++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				at := atomic.AddInt64(&next, 1)
				if at >= int64(len(chains)) {
					return
				}
				if err := r.chain(ctx, chains[at]); err != nil {
					failures <- err
					cancel()
					return
				}
			}
		}()
	}
	workers.Wait()
	close(failures)
	return <-failures
}

func (r *replay) chain(ctx context.Context, chain Chain) error {
	for i := range chain {
		atomic.AddInt64(&r.result.Calls, 1)
		err := r.call(ctx, &chain[i])
		switch {
		case err == nil:
		case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
			atomic.AddInt64(&r.result.Missing, 1)
		case errdefs.IsAlreadyExists(err):
			atomic.AddInt64(&r.result.Existed, 1)
		default:
			return fmt.Errorf("%s %s: %w", chain[i].Op, chain[i].Name, err)
		}
	}
	return nil
}

func (r *replay) call(ctx context.Context, call *Call) (err error) {
	switch call.Op {
	case "version":
		_, err = r.client.Version(ctx)
	case "plugins":
		_, err = r.client.IntrospectionService().Plugins(ctx, call.Filters)
	case "stat snapshot":
		_, err = r.snapshot[call.Snapshotter].Stat(ctx, call.Name)
	case "info blob":
		_, err = r.content.Info(ctx, digest.Digest(call.Name))
	case "list snapshots":
		err = walk(ctx, call.Objects, func(ctx context.Context, count func() error) error {
			each := func(context.Context, snapshots.Info) error { return count() }
			return r.snapshot[call.Snapshotter].Walk(ctx, each, call.Filters...)
		})
	case "list blobs":
		err = walk(ctx, call.Objects, func(ctx context.Context, count func() error) error {
			return r.content.Walk(ctx, func(content.Info) error { return count() }, call.Filters...)
		})
	case "list leases":
		_, err = r.leases.List(ctx, call.Filters...)
	case "list resources":
		_, err = r.leases.ListResources(ctx, leases.Lease{ID: call.Name})
	case "create lease":
		_, err = r.leases.Create(ctx, leases.WithID(call.Name), leases.WithLabels(call.Labels))
	case "add resource":
		err = r.leases.AddResource(ctx, leases.Lease{ID: call.Name}, leases.Resource{ID: call.Resource, Type: call.Type})
	case "update snapshot":
		info := snapshots.Info{Name: call.Name, Labels: call.Labels}
		_, err = r.snapshot[call.Snapshotter].Update(ctx, info, call.Paths...)
	case "update blob":
		_, err = r.content.Update(ctx, content.Info{Digest: digest.Digest(call.Name), Labels: call.Labels}, call.Paths...)
	default:
		err = errors.New("no such call here")
	}
	return err
}

// walk ends a list when as many objects as are wanted have been read.
func walk(ctx context.Context, wanted int, list func(context.Context, func() error) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := 0
	err := list(ctx, func() error {
		if seen++; seen >= wanted {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "live:", err)
	os.Exit(1)
}
