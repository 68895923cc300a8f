package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

const gzipLayer = "application/vnd.docker.image.rootfs.diff.tar.gzip"

// migration is one run. Phases deal with the records that were chosen; what they need of others, they only read.
type migration struct {
	stores
	records  *bolt.DB
	items    []*item
	byID     map[string]*item
	chosen   []*item
	isChosen map[string]bool

	// listing is how many seconds were spent on looking for all views, which takes the same for a part of the records.
	listing float64
}

// open copies the database of the records, opens all of them and reads all records.
func open(worker, target, namespace, snapshotter string) (*migration, error) {
	if err := copyFile(filepath.Join(worker, "metadata.db"), target); err != nil {
		return nil, err
	}
	m := &migration{byID: map[string]*item{}, isChosen: map[string]bool{}}
	m.namespace, m.snapshotter = []byte(namespace), []byte(snapshotter)
	// BuildKit has its own two databases with this kind of freelist, the snapshotters the default.
	quick := &bolt.Options{FreelistType: bolt.FreelistMapType}
	var err error
	if m.records, err = bolt.Open(target, 0o600, quick); err != nil {
		return nil, err
	}
	if m.metadata, err = bolt.Open(filepath.Join(worker, "containerdmeta.db"), 0o644, quick); err != nil {
		return nil, err
	}
	if m.backend, err = bolt.Open(filepath.Join(worker, "snapshots", "metadata.db"), 0o600, nil); err != nil {
		return nil, err
	}
	if m.items, err = load(m.records); err != nil {
		return nil, err
	}
	for _, one := range m.items {
		m.byID[one.id] = one
	}
	return m, nil
}

func (m *migration) close() error {
	for _, db := range []*bolt.DB{m.backend, m.metadata, m.records} {
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(source, target string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(target)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// choose takes all records, or so many at random.
func (m *migration) choose(limit int) {
	m.chosen = shuffled(m.items, 1)
	if limit > 0 && limit < len(m.chosen) {
		m.chosen = m.chosen[:limit]
	}
	for _, one := range m.chosen {
		m.isChosen[one.id] = true
	}
}

// order is that of a phase: each goes through the records in another one.
func (m *migration) order(phase int64) []*item {
	return shuffled(m.chosen, phase)
}

func (m *migration) commit(one *item) error {
	m.commits++
	return one.commit(m.records)
}

// ---- the phases

func (m *migration) addSnapshots() error {
	for _, one := range m.order(2) {
		if err := m.statOnce(one); err != nil {
			return err
		}
		if err := setSnapshot(one); err != nil {
			return err
		}
		if err := m.commit(one); err != nil {
			return err
		}
	}
	return nil
}

// statOnce asks the snapshotter for a record, once; a holder has no snapshot.
func (m *migration) statOnce(one *item) (err error) {
	if one.isStated || one.text("cache.equalMutable") != "" {
		return nil
	}
	one.isStated = true
	one.isCommitted, one.below, err = m.stat(one.id)
	return err
}

func setSnapshot(one *item) error {
	if one.isCommitted || one.text("cache.equalMutable") != "" {
		if err := one.set("snapshot.committed", true, ""); err != nil {
			return err
		}
	}
	if one.below != "" {
		if err := one.set("cache.parent", one.below, ""); err != nil {
			return err
		}
	}
	return one.set("cache.snapshot", one.id, "")
}

// addParents gives each holder the parent of the record that has its data.
func (m *migration) addParents() error {
	for _, one := range m.order(3) {
		mutable := one.text("cache.equalMutable")
		if mutable == "" || one.text("cache.parent") != "" {
			continue
		}
		parent, err := m.parentOf(m.byID[mutable])
		if err != nil {
			return err
		}
		if err := one.set("cache.parent", parent, ""); err != nil {
			return err
		}
		if err := m.commit(one); err != nil {
			return err
		}
	}
	return nil
}

// parentOf is the parent of any record, also of one that was not chosen.
func (m *migration) parentOf(one *item) (string, error) {
	if one == nil {
		return "", fmt.Errorf("a record that is needed does not exist")
	}
	if mutable := one.text("cache.equalMutable"); mutable != "" && !m.isChosen[one.id] {
		return m.parentOf(m.byID[mutable])
	}
	if parent := one.text("cache.parent"); parent != "" || m.isChosen[one.id] {
		return parent, nil
	}
	err := m.statOnce(one)
	return one.below, err
}

func (m *migration) addBlobs() error {
	for _, one := range m.order(4) {
		isSet, err := m.setBlob(one)
		if err != nil {
			return err
		}
		if isSet {
			if err := m.commit(one); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *migration) setBlob(one *item) (bool, error) {
	mapped := one.values["blobmapping.blob"]
	if mapped == nil {
		return false, nil
	}
	var pair struct{ Blobsum, DiffID string }
	if err := json.Unmarshal(mapped.Value, &pair); err != nil {
		return false, err
	}
	exists, err := m.hasBlob(pair.Blobsum)
	if err != nil || !exists {
		return false, err
	}
	for _, change := range [][2]string{
		{"cache.diffID", pair.DiffID}, {"cache.blob", pair.Blobsum}, {"cache.mediatype", gzipLayer},
	} {
		if err := one.set(change[0], change[1], ""); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (m *migration) addChains() error {
	for _, one := range m.order(5) {
		if _, _, err := m.chain(one); err != nil {
			return err
		}
	}
	return nil
}

// chain sets the chain IDs of a record after those of its ancestors; recursive and remembered, as upstream does it.
func (m *migration) chain(one *item) (string, string, error) {
	if one == nil {
		return "", "", fmt.Errorf("a parent that is needed does not exist")
	}
	if !m.isChosen[one.id] && one.text("cache.blob") == "" {
		if _, err := m.setBlob(one); err != nil {
			return "", "", err
		}
	}
	diffID, blob := one.text("cache.diffID"), one.text("cache.blob")
	if diffID == "" || blob == "" {
		return "", "", nil
	}
	chain, blobChain := one.text("cache.chainID"), one.text("cache.blobChainID")
	if chain != "" && blobChain != "" {
		return chain, blobChain, nil
	}
	chain, blobChain = diffID, digest(blob+" "+diffID)
	parent, err := m.parentOf(one)
	if err != nil {
		return "", "", err
	}
	if parent != "" {
		below, blobBelow, err := m.chain(m.byID[parent])
		if err != nil {
			return "", "", err
		}
		chain, blobChain = digest(below+" "+chain), digest(blobBelow+" "+blobChain)
	}
	return chain, blobChain, m.setChain(one, chain, blobChain)
}

func (m *migration) setChain(one *item, chain, blobChain string) error {
	if err := one.set("cache.chainID", chain, "chainid:"+chain); err != nil {
		return err
	}
	if err := one.set("cache.blobChainID", blobChain, "blobchainid:"+blobChain); err != nil {
		return err
	}
	if !m.isChosen[one.id] {
		return nil
	}
	return m.commit(one)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (m *migration) addLeases() error {
	for _, one := range m.order(6) {
		isNew, err := m.createLease(one.id)
		if err != nil {
			return err
		}
		if !isNew {
			continue
		}
		if err := m.addResource(one.id, one.text("cache.snapshot"), snapshots, m.snapshotter); err != nil {
			return err
		}
		if blob := one.text("cache.blob"); blob != "" {
			if err := m.addResource(one.id, blob, content); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *migration) removeLabels() error {
	for _, one := range m.order(7) {
		if one.text("cache.equalMutable") != "" {
			continue
		}
		if err := m.releaseSnapshot(one.text("cache.snapshot")); err != nil {
			return err
		}
		if blob := one.text("cache.blob"); blob != "" {
			if err := m.releaseBlob(blob); err != nil {
				return err
			}
		}
	}
	return nil
}

// removeViewLabels takes as large a part of the views as was chosen of the records.
func (m *migration) removeViewLabels() error {
	start := time.Now()
	keys, err := m.views()
	if err != nil {
		return err
	}
	m.listing = time.Since(start).Seconds()
	if len(m.items) > 0 {
		keys = keys[:len(keys)*len(m.chosen)/len(m.items)]
	}
	for _, key := range keys {
		if err := m.releaseSnapshot(key); err != nil {
			return err
		}
	}
	return nil
}
