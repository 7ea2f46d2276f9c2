// Package localkube runs the control plane of `lambdamesh dev`: a real etcd,
// kube-apiserver and kube-controller-manager as child processes, on loopback.
//
//	<data-dir>/lock                 one control plane per data directory
//	<data-dir>/kubeconfig           for kubectl: an administrator, context "lambdamesh"
//	<data-dir>/kubernetes/pki/      CA, certificates, the service accounts' key
//	<data-dir>/kubernetes/etcd/     all objects
//	<data-dir>/kubernetes/run/      sockets, configuration written at each start
//	<data-dir>/kubernetes/version   the Kubernetes that wrote the objects
//	<data-dir>/logs/kubernetes/     what the children print
//
// etcd listens on a Unix socket in a directory only its owner may enter; the API
// server authenticates by client certificate or service-account token and
// authorizes by RBAC. What is stored survives stops and kill -9; a child that
// ends is started again.
//
// A pod needs more (a kubelet, a scheduler); there is none. The controllers are
// those without which objects would not go away: garbage collection, namespaces
// and service accounts.
//
// What may enter: running these three and the state they need. Which kinds are
// installed is the caller's list; what runs on top lives in other components.
// The program's main must call process.WatcherMain first.
package localkube
