// Command offline migrates a v1 cache of an OCI worker as BuildKit's own migration did: one bolt commit
// for each record and call.
//
// It is the baseline of benchmarks/offline.py, and its result is compared with that of asyncmig, key for
// key.  The order of calls is that of MigrateV2 (cache/migrate_v2.go of moby/buildkit v0.27.1), the
// changes of each are those of containerd's metadata, leases and snapshot stores.  What those do besides,
// such as checking arguments, is left out.
//
// Only bbolt's stable API is used, so that it compiles with 1.3.6 (Debian 12) and with later releases.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// report is what benchmarks/baseline/__init__.py reads.
type report struct {
	Records   int                `json:"records"`
	Committed int                `json:"committed"`
	Commits   int                `json:"commits"`
	Fixed     float64            `json:"fixed_seconds"`
	Phases    map[string]float64 `json:"phases"`
	CPU       float64            `json:"cpu_seconds"`
	PeakMB    float64            `json:"peak_mb"`
}

func main() {
	limit := flag.Int("limit", 0, "commit only this many records; 0 is all of them")
	snapshotter := flag.String("snapshotter", "overlayfs", "name of the snapshotter")
	namespace := flag.String("namespace", "buildkit", "containerd's namespace")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: offline [-limit N] [-snapshotter NAME] [-namespace NAME] WORKER")
		os.Exit(2)
	}
	result, err := migrate(flag.Arg(0), *namespace, *snapshotter, *limit)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "offline:", err)
		os.Exit(1)
	}
}

func migrate(worker, namespace, snapshotter string, limit int) (report, error) {
	start := time.Now()
	target := filepath.Join(worker, "metadata_v2.db")
	m, err := open(worker, target+".tmp", namespace, snapshotter)
	if err != nil {
		return report{}, err
	}
	m.choose(limit)
	fixed := time.Since(start).Seconds()

	phases := map[string]float64{}
	for _, phase := range []struct {
		name string
		run  func() error
	}{
		{"records", m.addSnapshots},
		{"holders", m.addParents},
		{"blobs", m.addBlobs},
		{"chains", m.addChains},
		{"leases", m.addLeases},
		{"labels", m.removeLabels},
		{"views", m.removeViewLabels},
	} {
		begin := time.Now()
		if err := phase.run(); err != nil {
			return report{}, fmt.Errorf("%s: %w", phase.name, err)
		}
		phases[phase.name] = time.Since(begin).Seconds()
	}
	phases["views"] -= m.listing
	if err := m.close(); err != nil {
		return report{}, err
	}
	if err := os.Rename(target+".tmp", target); err != nil {
		return report{}, err
	}
	return report{
		Records:   len(m.items),
		Committed: len(m.chosen),
		Commits:   m.commits,
		Fixed:     fixed + m.listing,
		Phases:    phases,
		CPU:       cpuSeconds(),
		PeakMB:    peakMB(),
	}, nil
}

// shuffled gives the records an order that has nothing to do with that of the keys, as going through a Go
// map does; unlike that it is the same in every run.
func shuffled(items []*item, seed int64) []*item {
	order := append([]*item(nil), items...)
	rand.New(rand.NewSource(seed)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	return order
}

func cpuSeconds() float64 {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return seconds(usage.Utime) + seconds(usage.Stime)
}

func seconds(t syscall.Timeval) float64 {
	return float64(t.Sec) + float64(t.Usec)/1e6
}

// peakMB is not ru_maxrss, which is never less than what the process was that started this one.
func peakMB() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(status), "\n") {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "VmHWM:" {
			kb, _ := strconv.ParseFloat(fields[1], 64)
			return kb / 1024
		}
	}
	return 0
}
