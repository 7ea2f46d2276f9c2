// Package catalog is how the connector keeps the catalogs of all applications in
// memory: without the documents, which are most of their bytes and which nobody
// needs to make a call, and indexed by what they are looked up by.
//
// What may enter: what the cache keeps and by which fields it is read. Who reads
// it decides what it means.
package catalog
