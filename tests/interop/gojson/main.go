// gojson answers how Go's encoding/json reads and writes record values, for comparison with ours.
//
// Each input line is "decode HEX" (a stored value) or "encode HEX HEX" (a string and an index, as raw bytes);
// each answer is one line of JSON with byte strings in hex.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// value is the struct that BuildKit stores each key of a record as.
type value struct {
	Value json.RawMessage `json:"value,omitempty"`
	Index string          `json:"index,omitempty"`
}

// pair is what blobmapping.blob holds.
type pair struct {
	Blobsum string
	DiffID  string
}

type decoded struct {
	Err     bool   `json:"err"`
	Index   string `json:"index"`
	String  string `json:"string"`
	PairErr bool   `json:"pairerr"`
	Blobsum string `json:"blobsum"`
	DiffID  string `json:"diffid"`
}

func decode(raw []byte) decoded {
	var v value
	if err := json.Unmarshal(raw, &v); err != nil {
		return decoded{Err: true}
	}
	d := decoded{Index: hex.EncodeToString([]byte(v.Index))}
	var s string
	if err := json.Unmarshal(v.Value, &s); err == nil {
		d.String = hex.EncodeToString([]byte(s))
	}
	var p pair
	if err := json.Unmarshal(v.Value, &p); err != nil {
		d.PairErr = true
		return d
	}
	d.Blobsum, d.DiffID = hex.EncodeToString([]byte(p.Blobsum)), hex.EncodeToString([]byte(p.DiffID))
	return d
}

func encode(text, index []byte) (string, error) {
	raw, err := json.Marshal(string(text))
	if err != nil {
		return "", err
	}
	out, err := json.Marshal(&value{Value: raw, Index: string(index)})
	return hex.EncodeToString(out), err
}

func main() {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 1<<24)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for in.Scan() {
		fields := strings.Split(in.Text(), " ")
		args := make([][]byte, 0, 2)
		for _, f := range fields[1:] {
			b, err := hex.DecodeString(f)
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(2)
			}
			args = append(args, b)
		}
		var answer interface{}
		if fields[0] == "decode" {
			answer = decode(args[0])
		} else {
			text, err := encode(args[0], args[1])
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(2)
			}
			answer = text
		}
		line, err := json.Marshal(answer)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		fmt.Fprintln(out, string(line))
	}
}
