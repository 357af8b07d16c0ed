package events_test

import (
	"bufio"
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/events"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// BenchmarkPublish is what one event costs its publisher with 50 readers that never read and 1,000 that wait.
func BenchmarkPublish(b *testing.B) {
	bus := events.New(events.Options{})
	var wg sync.WaitGroup
	for range 50 {
		b.Cleanup(bus.Subscribe(events.Filter{}).Close)
	}
	for range 1000 {
		s := bus.Subscribe(events.Filter{})
		wg.Go(func() {
			defer s.Close()
			for {
				if _, err := s.Next(context.Background()); err != nil {
					return
				}
			}
		})
	}
	status := registry.ModelStatus{ModelID: "org/model", Device: "cuda:0"}
	b.ReportAllocs()
	for b.Loop() {
		bus.Publish(registry.EventModelStatus, status.ModelID, status)
	}
	bus.Close()
	wg.Wait()
}

// BenchmarkFanOutSSE is how long one event takes to 1,000 clients over HTTP while 50 more never read: the time at which
// 99 of 100 have it, at each event. Budget: 50 ms.
func BenchmarkFanOutSSE(b *testing.B) {
	const readers, dead = 1000, 50
	bus := events.New(events.Options{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := bus.Subscribe(events.Filter{})
		defer s.Close()
		w.Header().Set("Content-Type", "text/event-stream")
		out := http.NewResponseController(w)
		_, _ = w.Write(events.PositionFrame(s.Start()))
		_ = out.Flush()
		for {
			batch, err := s.Next(r.Context())
			if err != nil {
				return
			}
			for _, m := range batch {
				if _, err := w.Write(m.Frame()); err != nil {
					return
				}
			}
			if err := out.Flush(); err != nil {
				return
			}
		}
	}))
	ctx, cancel := context.WithCancel(context.Background())
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	arrived := make(chan time.Time, readers)
	var wg sync.WaitGroup
	for i := range readers + dead {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
		if err != nil {
			b.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			b.Fatal(err)
		}
		if i < dead {
			b.Cleanup(func() { _ = resp.Body.Close() })
			continue
		}
		wg.Go(func() {
			defer resp.Body.Close()
			sc := bufio.NewScanner(resp.Body)
			for sc.Scan() {
				if strings.HasPrefix(sc.Text(), "data: ") {
					arrived <- time.Now()
				}
			}
		})
	}

	status := registry.ModelStatus{ModelID: "org/model", Device: "cuda:0"}
	var p99s []time.Duration
	for b.Loop() {
		start := time.Now()
		bus.Publish(registry.EventModelStatus, status.ModelID, status)
		took := make([]time.Duration, readers)
		for i := range took {
			took[i] = (<-arrived).Sub(start)
		}
		slices.Sort(took)
		p99s = append(p99s, took[readers*99/100])
	}
	slices.Sort(p99s)
	b.ReportMetric(float64(p99s[len(p99s)/2].Microseconds())/1000, "p99-ms/median")
	b.ReportMetric(float64(p99s[len(p99s)*99/100].Microseconds())/1000, "p99-ms/p99")
	cancel()
	bus.Close()
	wg.Wait()
	srv.CloseClientConnections()
	srv.Close()
}
