// Command web is what the test runs in pods: it says who it is, and asks and
// looks up for the test what only a pod can.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	name, _ := os.Hostname()
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s uid=%d from=%s", name, os.Getuid(), host)
	})
	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		resp, err := client.Get(r.FormValue("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(w, resp.Body)
	})
	http.HandleFunc("/lookup", func(w http.ResponseWriter, r *http.Request) {
		addresses, err := net.DefaultResolver.LookupHost(r.Context(), r.FormValue("host"))
		if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
			fmt.Fprintf(w, "notfound=%t %v", dns.IsNotFound, err)
			return
		}
		fmt.Fprint(w, addresses)
	})
	if os.Getenv("GREEDY") != "" {
		for taken := [][]byte{}; ; {
			taken = append(taken, bytes.Repeat([]byte{1}, 1<<20))
		}
	}
	// A pod's main container may need its sidecar before it starts.
	if url := os.Getenv("NEEDS"); url != "" {
		if _, err := client.Get(url); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	// What a volume keeps: a line for each start.
	if file := os.Getenv("STARTS"); file != "" {
		if err := start(file); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		http.HandleFunc("/starts", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	}
	fmt.Println("listening")
	if err := http.ListenAndServe(os.Getenv("ADDRESS"), nil); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func start(file string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, "start")
	return errors.Join(err, f.Sync(), f.Close())
}
