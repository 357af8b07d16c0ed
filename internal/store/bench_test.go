package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

const many = 100_000

// manyModels makes models as a large team has them: some hundred organisations, a few teams, all sources.
func manyModels(n int) []registry.Model {
	families := []string{"Llama-3", "Mistral", "Qwen2.5", "gemma", "phi", "SmolLM2", "bert", "whisper"}
	ms := make([]registry.Model, n)
	for i := range ms {
		f := families[i%len(families)]
		ms[i] = registry.Model{
			ModelID:     fmt.Sprintf("org-%03d/%s-%dB-instruct-%06d", i*7919%400, f, i%70+1, i),
			SourceType:  registry.SourceTypes[i%len(registry.SourceTypes)],
			SourcePath:  fmt.Sprintf("/opt/models/org-%03d/%s-%06d", i*7919%400, f, i),
			ModelFormat: registry.Formats[i%len(registry.Formats)],
			Team:        fmt.Sprintf("team-%d", i%20),
			Description: "Instruction-tuned " + f + " for the support desk, evaluation run " + fmt.Sprint(i),
			Tags:        []string{"chat", "eval"},
		}
	}
	return ms
}

// manyAt makes a registry of n models in a file and returns its path.
func manyAt(b *testing.B, n int) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "registry.db")
	s := open(b, store.Options{Path: path})
	if _, _, _, err := s.PutModels(b.Context(), manyModels(n), store.PutOptions{Actor: "bench", Persist: true}); err != nil {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// reportP99 times op b.N times and reports the slowest of a hundred, in milliseconds, beside its budget.
func reportP99(b *testing.B, budget time.Duration, op func(i int)) {
	took := make([]time.Duration, 0, b.N)
	b.ResetTimer()
	for i := range b.N {
		begun := time.Now()
		op(i)
		took = append(took, time.Since(begun))
	}
	b.StopTimer()
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	b.ReportMetric(float64(took[len(took)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(p99)/1e6, "p99-ms")
	b.ReportMetric(float64(budget)/1e6, "budget-ms")
	b.ReportMetric(float64(p99)/float64(budget), "ratio")
}

func BenchmarkOpen(b *testing.B) {
	path := manyAt(b, many)
	reportP99(b, 60*time.Millisecond, func(int) {
		s, err := store.Open(b.Context(), store.Options{Path: path})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	})
}

func BenchmarkListModels(b *testing.B) {
	s := open(b, store.Options{Path: manyAt(b, many)})
	// A search waits for the index; before it the lists would be answered from the file.
	if _, err := s.ListModels(b.Context(), store.ListQuery{Q: "x"}); err != nil {
		b.Fatal(err)
	}
	for _, q := range []struct {
		name string
		q    store.ListQuery
	}{
		{"first page", store.ListQuery{}},
		{"deep page", store.ListQuery{After: "org-390"}},
		{"search one", store.ListQuery{Q: "instruct-054321"}},
		{"search many", store.ListQuery{Q: "qwen"}},
		{"search two words", store.ListQuery{Q: "org-12 mistral"}},
		{"search nothing", store.ListQuery{Q: "no such model anywhere"}},
		{"search nothing in pieces that occur", store.ListQuery{Q: "instruct-tuned"}},
		{"team", store.ListQuery{Team: "team-7"}},
		{"teams, source and search", store.ListQuery{Teams: []string{"team-1", "team-2"}, SourceType: registry.SourceS3, Q: "llama"}},
		{"status", store.ListQuery{Status: registry.StatusReady}},
	} {
		b.Run(q.name, func(b *testing.B) {
			reportP99(b, 4*time.Millisecond, func(int) {
				if _, err := s.ListModels(b.Context(), q.q); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}

// BenchmarkListModelsWhileWriting is the slowest case of the above with somebody else writing all the time.
func BenchmarkListModelsWhileWriting(b *testing.B) {
	s := open(b, store.Options{Path: manyAt(b, many)})
	if _, err := s.ListModels(b.Context(), store.ListQuery{Q: "x"}); err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan struct{})
	var writes atomic.Int64
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			m := registry.Model{ModelID: fmt.Sprintf("org-%03d/new-%d", i%400, i), SourceType: registry.SourceLocal, SourcePath: "/x", ModelFormat: registry.FormatGGUF}
			if _, _, err := s.PutModel(ctx, m, store.PutOptions{Persist: true}); err == nil {
				writes.Add(1)
			}
		}
	}()
	reportP99(b, 4*time.Millisecond, func(int) {
		if _, err := s.ListModels(b.Context(), store.ListQuery{Q: "no such model anywhere"}); err != nil {
			b.Fatal(err)
		}
	})
	stop()
	<-done
	b.ReportMetric(float64(writes.Load())/b.Elapsed().Seconds(), "writes/s")
}

func BenchmarkPutModel(b *testing.B) {
	s := open(b, store.Options{Path: manyAt(b, many)})
	reportP99(b, 5*time.Millisecond, func(i int) {
		m := registry.Model{ModelID: fmt.Sprintf("org-%03d/put-%d", i*7919%400, i), SourceType: registry.SourceLocal, SourcePath: "/x", ModelFormat: registry.FormatGGUF}
		if _, _, err := s.PutModel(b.Context(), m, store.PutOptions{Persist: true, ToManifest: true}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPutRuntime(b *testing.B) {
	s := open(b, store.Options{Path: manyAt(b, many)})
	ms := manyModels(1000)
	reportP99(b, 5*time.Millisecond, func(i int) {
		rt := registry.Runtime{ModelID: ms[i%len(ms)].ModelID, State: registry.RuntimeReady, Generation: int64(i)}
		if err := s.PutRuntime(b.Context(), rt); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPutModels10000(b *testing.B) {
	ms := manyModels(10_000)
	reportP99(b, time.Second, func(i int) {
		b.StopTimer()
		s := open(b, store.Options{Path: filepath.Join(b.TempDir(), fmt.Sprint(i))})
		b.StartTimer()
		if _, _, _, err := s.PutModels(b.Context(), ms, store.PutOptions{Persist: true}); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkEachModel10000(b *testing.B) {
	s := open(b, store.Options{Path: manyAt(b, 10_000)})
	reportP99(b, 500*time.Millisecond, func(int) {
		if err := s.EachModel(b.Context(), nil, func(registry.Record) error { return nil }); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkIndexMemory reports what the index of 100,000 models holds on the heap.
func BenchmarkIndexMemory(b *testing.B) {
	path := manyAt(b, many)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		s := open(b, store.Options{Path: path})
		if _, err := s.ListModels(b.Context(), store.ListQuery{Q: "x"}); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
