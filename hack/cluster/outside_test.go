package main_test

import (
	"fmt"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// outsideMachine is this machine's address in the network of outside.
const outsideMachine = "198.51.100.1"

// outside is a server beyond the machine: in a namespace that only the machine
// is joined to, with no way back to a cluster's addresses.
func outside(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	space, err := netns.New() // enters it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { space.Close() })
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err := netns.Set(home); err != nil {
		t.Fatal(err) // the thread stays locked, and ends with the test
	}
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lm-outside"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "machine", PeerNamespace: netlink.NsFd(space)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(attrs.Name); err == nil {
			_ = netlink.LinkDel(link)
		}
	})
	inside, err := netlink.NewHandleAt(space, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	for _, end := range []struct {
		handle        *netlink.Handle
		link, address string
	}{{here, attrs.Name, outsideMachine + "/30"}, {inside, "machine", "198.51.100.2/30"}} {
		link, err := end.handle.LinkByName(end.link)
		if err != nil {
			t.Fatal(err)
		}
		address, err := netlink.ParseAddr(end.address)
		if err != nil {
			t.Fatal(err)
		}
		if err := end.handle.AddrAdd(link, address); err != nil {
			t.Fatal(err)
		}
		if err := end.handle.LinkSetUp(link); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "asked by %s", host)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return fmt.Sprintf("http://198.51.100.2:%d/", listener.Addr().(*net.TCPAddr).Port)
}
