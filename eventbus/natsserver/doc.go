// Package natsserver runs a NATS server with JetStream inside this process: a
// [Server] for one machine without a NATS cluster, or a [Program] that an ordinary
// nats.conf describes, which is how a cluster's NATS runs from our own image.
//
// A Program reads its configuration and certificates again when their files
// change, and ends as a lame duck.
//
// Every write is synced to disk before it is acknowledged (sync_interval:
// always). A Server opens no network port unless asked for, and its data directory
// is used by one server only.
//
// When its disk is full or fails, the server stops JetStream and the bus answers
// 503 and is not ready; nothing accepted is lost. Free some space and restart the
// process. Config.MaxStoreBytes, below what the disk has, keeps it from coming to
// that: a full store refuses and goes on.
//
// What may enter: starting, configuring and stopping that server. It is the only
// importer of nats-server.
package natsserver
