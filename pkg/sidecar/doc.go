// Package sidecar is what makes a pod a member of a mesh without Istio: the
// proxy's container, what both it and the application find in the pod, and where
// they meet.
//
//	others --mTLS--> :15006  mesh-proxy  unix:/var/run/lambdamesh/app/app.sock --> application
//	application --HTTP_PROXY--> 127.0.0.1:15001  mesh-proxy --mTLS--> others
//
// Nothing is captured and nothing needs a privilege: the application listens on a
// socket that only its pod reaches, and calls through a proxy that it is told. The
// proxy shows the control plane a token of the pod's own and is given everything
// else.
//
// What may enter: the names and addresses in a pod, and the objects of a pod's
// specification that follow from them. Who gets a sidecar, and what its proxy
// lets in, is decided elsewhere.
package sidecar
