package main

import (
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

const (
	gcRoot   = "containerd.io/gc.root"
	gcFlat   = "containerd.io/gc.flat"
	kindView = 1
	kindDone = 3 // committed
)

var (
	version   = []byte("v1")
	snapshots = []byte("snapshots")
	content   = []byte("content")
	leases    = []byte("leases")
	labels    = []byte("labels")
	createdAt = []byte("createdat")
	updatedAt = []byte("updatedat")
)

// stores are containerd's metadata and the snapshotter's own database.
type stores struct {
	metadata    *bolt.DB
	backend     *bolt.DB
	namespace   []byte
	snapshotter []byte
	commits     int
}

// stat tells whether a snapshot is committed, and its parent: a read transaction in each database.
func (s *stores) stat(key string) (isCommitted bool, parent string, err error) {
	var name []byte
	err = s.metadata.View(func(tx *bolt.Tx) error {
		entry := find(tx, version, s.namespace, snapshots, s.snapshotter, []byte(key))
		if entry == nil {
			return fmt.Errorf("snapshot %s does not exist", key)
		}
		parent = string(entry.Get([]byte("parent")))
		name = append(name, entry.Get([]byte("name"))...)
		return nil
	})
	if err != nil {
		return false, "", err
	}
	err = s.backend.View(func(tx *bolt.Tx) error {
		entry := find(tx, version, snapshots, name)
		if entry == nil {
			return fmt.Errorf("snapshot %s does not exist", name)
		}
		kind := entry.Get([]byte("kind"))
		isCommitted = len(kind) > 0 && kind[0] == kindDone
		return nil
	})
	return isCommitted, parent, err
}

// hasBlob tells whether the content store knows a blob.
func (s *stores) hasBlob(digest string) (found bool, err error) {
	err = s.metadata.View(func(tx *bolt.Tx) error {
		found = find(tx, version, s.namespace, content, []byte("blob"), []byte(digest)) != nil
		return nil
	})
	return found, err
}

// views are all snapshots that are views, by key.
func (s *stores) views() ([]string, error) {
	isView := map[string]bool{}
	err := s.backend.View(func(tx *bolt.Tx) error {
		entries := find(tx, version, snapshots)
		if entries == nil {
			return nil
		}
		return entries.ForEach(func(name, _ []byte) error {
			kind := entries.Bucket(name).Get([]byte("kind"))
			if len(kind) > 0 && kind[0] == kindView {
				isView[string(name)] = true
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	var keys []string
	err = s.metadata.View(func(tx *bolt.Tx) error {
		entries := find(tx, version, s.namespace, snapshots, s.snapshotter)
		if entries == nil {
			return nil
		}
		return entries.ForEach(func(key, _ []byte) error {
			if isView[string(entries.Bucket(key).Get([]byte("name")))] {
				keys = append(keys, string(key))
			}
			return nil
		})
	})
	return keys, err
}

// createLease makes an empty lease; false if there is one of its name.
func (s *stores) createLease(id string) (isNew bool, err error) {
	s.commits++
	err = s.metadata.Update(func(tx *bolt.Tx) error {
		all, err := createPath(tx, version, s.namespace, leases)
		if err != nil {
			return err
		}
		lease, err := all.CreateBucket([]byte(id))
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		if err := putTime(lease, createdAt, now); err != nil {
			return err
		}
		bucket, err := lease.CreateBucket(labels)
		if err != nil {
			return err
		}
		return bucket.Put([]byte(gcFlat), []byte(now.Format(time.RFC3339Nano)))
	})
	if err == bolt.ErrBucketExists {
		return false, nil
	}
	return err == nil, err
}

// addResource adds one resource, in the buckets of its type, to a lease.
func (s *stores) addResource(lease, id string, kind ...[]byte) error {
	s.commits++
	return s.metadata.Update(func(tx *bolt.Tx) error {
		bucket := find(tx, version, s.namespace, leases, []byte(lease))
		if bucket == nil {
			return fmt.Errorf("lease %s does not exist", lease)
		}
		for _, part := range kind {
			var err error
			if bucket, err = bucket.CreateBucketIfNotExists(part); err != nil {
				return err
			}
		}
		return bucket.Put([]byte(id), nil)
	})
}

// releaseSnapshot removes the label from a snapshot: a transaction in the snapshotter's database within one in
// containerd's.  Nothing happens to a snapshot that does not exist.
func (s *stores) releaseSnapshot(key string) error {
	s.commits += 2
	return s.metadata.Update(func(tx *bolt.Tx) error {
		entry := find(tx, version, s.namespace, snapshots, s.snapshotter, []byte(key))
		if entry == nil {
			return nil
		}
		if err := removeLabel(entry); err != nil {
			return err
		}
		name := entry.Get([]byte("name"))
		return s.backend.Update(func(inner *bolt.Tx) error {
			bucket := find(inner, version, snapshots, name)
			if bucket == nil {
				return fmt.Errorf("snapshot %s does not exist", name)
			}
			return removeLabel(bucket)
		})
	})
}

// releaseBlob removes the label from a blob.
func (s *stores) releaseBlob(digest string) error {
	s.commits++
	return s.metadata.Update(func(tx *bolt.Tx) error {
		entry := find(tx, version, s.namespace, content, []byte("blob"), []byte(digest))
		if entry == nil {
			return fmt.Errorf("blob %s does not exist", digest)
		}
		size := append([]byte(nil), entry.Get([]byte("size"))...)
		if err := removeLabel(entry); err != nil {
			return err
		}
		return entry.Put([]byte("size"), size)
	})
}

// removeLabel writes times and labels anew, as every update in containerd does it.
func removeLabel(entry *bolt.Bucket) error {
	var created time.Time
	if raw := entry.Get(createdAt); raw != nil {
		if err := created.UnmarshalBinary(raw); err != nil {
			return err
		}
	}
	if err := putTime(entry, createdAt, created); err != nil {
		return err
	}
	if err := putTime(entry, updatedAt, time.Now().UTC()); err != nil {
		return err
	}
	kept, err := takeLabels(entry)
	if err != nil {
		return err
	}
	delete(kept, gcRoot)
	bucket, err := entry.CreateBucket(labels)
	for name, text := range kept {
		if err != nil {
			break
		}
		err = bucket.Put([]byte(name), []byte(text))
	}
	return err
}

// takeLabels deletes all labels and returns them.
func takeLabels(entry *bolt.Bucket) (map[string]string, error) {
	found := map[string]string{}
	bucket := entry.Bucket(labels)
	if bucket == nil {
		return found, nil
	}
	err := bucket.ForEach(func(name, text []byte) error {
		if len(text) > 0 {
			found[string(name)] = string(text)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return found, entry.DeleteBucket(labels)
}

func putTime(bucket *bolt.Bucket, key []byte, when time.Time) error {
	raw, err := when.MarshalBinary()
	if err != nil {
		return err
	}
	return bucket.Put(key, raw)
}
