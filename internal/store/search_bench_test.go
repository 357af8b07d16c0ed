package store

import (
	"fmt"
	"syscall"
	"testing"
	"time"
)

// manyEntries is an index of n models as a large team has them.
func manyEntries(n int) *version {
	families := []string{"Llama-3", "Mistral", "Qwen2.5", "gemma", "phi", "SmolLM2", "bert", "whisper"}
	changes := make([]change, n)
	for i := range changes {
		f := families[i%len(families)]
		key := fold(fmt.Sprintf("org-%03d/%s-%dB-instruct-%06d", i*7919%400, f, i%70+1, i))
		changes[i] = change{key: key, kind: changePut, team: fmt.Sprintf("team-%d", i%20), source: uint8(i%5 + 1), status: 9,
			text: searchText(key, fmt.Sprintf("Instruction-tuned %s for the support desk, evaluation run %d", f, i), []string{"chat", "eval"}, fmt.Sprintf("/opt/models/org-%03d/%s-%06d", i*7919%400, f, i))}
	}
	return (&version{}).with(changes)
}

// cpuTime is what this process has used of the CPUs.
func cpuTime() (time.Duration, error) {
	var u syscall.Rusage
	err := syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), err
}

// BenchmarkSearch is a search alone, with the total: what a list costs beyond reading its rows.
func BenchmarkSearch(b *testing.B) {
	v := manyEntries(100_000)
	for _, q := range []ListQuery{{Q: "s"}, {Q: "in"}, {Q: "instruct"}, {Q: "017"}, {Q: "phi support desk"}, {Q: "llama-3 support desk"}, {Q: "desk support run"}, {Q: "instruct-054321"}, {Q: "nothing at all"}, {Team: "team-6"}, {Teams: []string{"team-1", "team-2"}, Q: "chat"}, {Status: "ready"}, {After: "org-390"}} {
		q.Limit = 50
		b.Run(fmt.Sprintf("%s%s%s%v%s", q.Q, q.Team, q.Status, q.Teams, q.After), func(b *testing.B) {
			_, _, total, _ := v.search(q)
			begun, err := cpuTime()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				v.search(q)
			}
			ended, err := cpuTime()
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(ended-begun)/float64(b.N)/1e6, "cpu-ms/op") // says more than the time on a busy machine
			b.ReportMetric(float64(total), "hits")
		})
	}
}
