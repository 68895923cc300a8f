package main

import (
	"encoding/json"

	bolt "go.etcd.io/bbolt"
)

var (
	mainBucket  = []byte("_main")
	indexBucket = []byte("_index")
)

// value is how BuildKit stores one: JSON, and the name under which the record is found by it, if any.
type value struct {
	Value json.RawMessage `json:"value,omitempty"`
	Index string          `json:"index,omitempty"`
}

// item is a record with the changes that its next commit makes.
type item struct {
	id     string
	values map[string]*value
	keys   []string // with queue: what the next commit sets
	queue  []*value

	// What the snapshotter has of it.
	isStated    bool
	isCommitted bool
	below       string
}

// load reads all records, as BuildKit does it: every value of every record is parsed and kept.
func load(db *bolt.DB) ([]*item, error) {
	var items []*item
	err := db.View(func(tx *bolt.Tx) error {
		records := tx.Bucket(mainBucket)
		if records == nil {
			return nil
		}
		return records.ForEach(func(id, _ []byte) error {
			bucket := records.Bucket(id)
			if bucket == nil {
				return nil
			}
			read, err := readItem(string(id), bucket)
			items = append(items, read)
			return err
		})
	})
	return items, err
}

func readItem(id string, bucket *bolt.Bucket) (*item, error) {
	read := &item{id: id, values: map[string]*value{}}
	err := bucket.ForEach(func(key, raw []byte) error {
		if len(raw) == 0 {
			return nil
		}
		parsed := &value{}
		read.values[string(key)] = parsed
		return json.Unmarshal(raw, parsed)
	})
	return read, err
}

// text is the value of a key as a string, "" if there is none.
func (i *item) text(key string) string {
	found := i.values[key]
	if found == nil {
		return ""
	}
	var text string
	if json.Unmarshal(found.Value, &text) != nil {
		return ""
	}
	return text
}

// set has the next commit set a key.
func (i *item) set(key string, to interface{}, index string) error {
	raw, err := json.Marshal(to)
	if err != nil {
		return err
	}
	i.keys = append(i.keys, key)
	i.queue = append(i.queue, &value{raw, index})
	i.values[key] = i.queue[len(i.queue)-1]
	return nil
}

// commit writes what was set since the last one: one transaction.
func (i *item) commit(db *bolt.DB) error {
	err := db.Update(func(tx *bolt.Tx) error {
		bucket, err := createPath(tx, mainBucket, []byte(i.id))
		if err != nil {
			return err
		}
		for n, key := range i.keys {
			if err := i.put(tx, bucket, key, i.queue[n]); err != nil {
				return err
			}
		}
		return nil
	})
	i.keys, i.queue = nil, nil
	return err
}

func (i *item) put(tx *bolt.Tx, bucket *bolt.Bucket, key string, to *value) error {
	raw, err := json.Marshal(to)
	if err != nil {
		return err
	}
	if err := bucket.Put([]byte(key), raw); err != nil || to.Index == "" {
		return err
	}
	index, err := tx.CreateBucketIfNotExists(indexBucket)
	if err != nil {
		return err
	}
	return index.Put([]byte(to.Index+"::"+i.id), []byte{})
}

// createPath opens the bucket at path and makes what is missing.
func createPath(tx *bolt.Tx, path ...[]byte) (*bolt.Bucket, error) {
	bucket, err := tx.CreateBucketIfNotExists(path[0])
	for _, part := range path[1:] {
		if err != nil {
			return nil, err
		}
		bucket, err = bucket.CreateBucketIfNotExists(part)
	}
	return bucket, err
}

// find opens the bucket at path, or returns nil.
func find(tx *bolt.Tx, path ...[]byte) *bolt.Bucket {
	bucket := tx.Bucket(path[0])
	for _, part := range path[1:] {
		if bucket == nil {
			return nil
		}
		bucket = bucket.Bucket(part)
	}
	return bucket
}
