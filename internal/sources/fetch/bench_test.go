package fetch

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkFetch fetches shards over loopback, with verification; the server is in the same process, so half of the
// processor time is its own. LLMM_FETCH_BENCH_DIR chooses the disk.
func BenchmarkFetch(b *testing.B) {
	for _, shape := range []struct{ files, size int }{{1, 512 << 20}, {8, 64 << 20}, {512, 1 << 20}} {
		b.Run(fmt.Sprintf("%dx%dMiB", shape.files, shape.size>>20), func(b *testing.B) {
			files := map[string][]byte{}
			data := content(shape.size, 1)
			for n := range shape.files {
				files[fmt.Sprintf("f%d", n)] = data
			}
			h := newHub(b, files)
			b.SetBytes(int64(shape.files * shape.size))
			for b.Loop() {
				dir, err := os.MkdirTemp(os.Getenv("LLMM_FETCH_BENCH_DIR"), "fetch") //nolint:usetesting // on the disk that is to be measured
				if err != nil {
					b.Fatal(err)
				}
				var before, after unix.Rusage
				_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
				if err := New(Options{}).Run(b.Context(), h.job(dir)); err != nil {
					b.Fatal(err)
				}
				_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
				b.ReportMetric(float64(after.Utime.Nano()+after.Stime.Nano()-before.Utime.Nano()-before.Stime.Nano())/1e9, "cpu-s")
				b.ReportMetric(float64(h.conns.Swap(0)), "conns")
				_ = os.RemoveAll(dir)
			}
		})
	}
}
