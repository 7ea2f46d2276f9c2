package testkit

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Way is one of several ways of doing the same, for [Compare].
type Way struct {
	Name string
	// Callers do it at the same time, each again and again.
	Callers []func() error
	// Each is how often a caller does it at once; default 1.
	Each int
}

// Compare measures ways by turns, so that what else the machine does is the same
// for all: in each of b's rounds each way is done so often by each of its callers.
// It reports the median of the rounds of each way in operations a second, and for
// each but the first the median of its ratios to the first in the same round; and
// the processor time that this process takes for one, both ends included, which
// says more than the rates where others use the machine.
func Compare(b *testing.B, times int, ways ...Way) {
	b.Helper()
	rates, ratios, costs := make([][]float64, len(ways)), make([][]float64, len(ways)), make([][]float64, len(ways))
	measure := func(way Way) float64 {
		var wg sync.WaitGroup
		begin := time.Now()
		for _, caller := range way.Callers {
			wg.Go(func() {
				for range times {
					if err := caller(); err != nil {
						b.Errorf("%s: %v", way.Name, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return float64(times*len(way.Callers)*max(way.Each, 1)) / time.Since(begin).Seconds()
	}
	for _, way := range ways { // connections are made, caches filled
		measure(way)
	}
	for b.Loop() {
		round := make([]float64, len(ways))
		for i, way := range ways {
			before := processorTime(b)
			round[i] = measure(way)
			took := processorTime(b) - before
			costs[i] = append(costs[i], took.Seconds()*1e6/float64(times*len(way.Callers)*max(way.Each, 1)))
			rates[i], ratios[i] = append(rates[i], round[i]), append(ratios[i], round[i]/round[0])
		}
	}
	b.ReportMetric(0, "ns/op") // a round is no operation
	for i, way := range ways {
		b.ReportMetric(median(rates[i]), way.Name+"/s")
		b.ReportMetric(median(costs[i]), way.Name+"-cpu-us")
		if i > 0 {
			b.ReportMetric(median(ratios[i]), way.Name+":"+ways[0].Name)
		}
	}
}

func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// Wire is a kept connection on which requests are written as they are, and of the
// answers no more is read than it takes to find their end: what is measured with
// it is the other end. Answers must have a Content-Length.
type Wire struct {
	net.Conn
	r *bufio.Reader
}

// NewWire makes one of a connection.
func NewWire(c net.Conn) *Wire { return &Wire{c, bufio.NewReader(c)} }

// Do sends a request and reads its answer, whose status must be want.
func (w *Wire) Do(request []byte, want int) error {
	if _, err := w.Write(request); err != nil {
		return fmt.Errorf("sending: %w", err)
	}
	line, err := w.r.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if len(line) < len("HTTP/1.1 200") || string(line[9:12]) != strconv.Itoa(want) {
		return fmt.Errorf("answered %q", line)
	}
	length := -1
	for {
		line, err := w.r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		if line = bytes.TrimRight(line, "\r\n"); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return fmt.Errorf("reading the answer: %w", err)
			}
		}
	}
	if length < 0 {
		return fmt.Errorf("the answer has no length")
	}
	_, err = io.CopyN(io.Discard, w.r, int64(length))
	return err
}
