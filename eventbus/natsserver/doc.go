// Package natsserver runs a NATS server with JetStream inside this process, for
// one machine without a NATS cluster.
//
// Every write is synced to disk before it is acknowledged (sync_interval:
// always), no network port is opened unless asked for, and a data directory is
// used by one server only.
//
// What may enter: starting, configuring and stopping that server. It is the only
// importer of nats-server.
package natsserver
