// Package dev is the whole of Lambdamesh on one machine: `lambdamesh dev`.
//
//	localkube        kube-apiserver, etcd, kube-controller-manager
//	natsserver       the broker, embedded
//	controllers      meshconfig, lambdas, connector; the ADS server
//	members          the event bus and the connector behind their sidecars
//	localnode        lambdas as processes behind their sidecars
//	gateway          the embedded proxy
//
// Every part is the one that runs in a cluster, wired as another list of
// components; what is particular here is only who supervises them and which
// sockets they get. What may enter: that wiring, and what a person at a terminal
// needs: addresses, applying files, progress.
package dev
