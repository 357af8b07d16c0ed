package view

import (
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// TestMemoryLine: what was predicted, measured and is said by the engine stand beside each other.
func TestMemoryLine(t *testing.T) {
	const gib = 1 << 30
	for want, c := range map[string]struct {
		device string
		mem    registry.Memory
	}{
		"":             {"cpu", registry.Memory{PredictedRAM: gib}},
		"Takes 2 GiB.": {"cpu", registry.Memory{MeasuredRAM: 2 * gib}},
		"Takes 2 GiB, as predicted. By the engine's own count: 1.5 GiB in main memory.":                                      {"cpu", registry.Memory{PredictedRAM: 2 * gib, MeasuredRAM: 2 * gib, ReportedRAM: gib + gib/2}},
		"Takes 3 GiB, 50% more than the 2 GiB predicted. By the engine's own count: 2 GiB on GPUs and 1 GiB in main memory.": {"cuda:0", registry.Memory{PredictedGPU: 2 * gib, MeasuredGPU: 3 * gib, ReportedGPU: 2 * gib, ReportedRAM: gib}},
		"Takes 2 GiB on GPUs by the engine's own count.":                                                                     {"remote", registry.Memory{ReportedGPU: 2 * gib}},
	} {
		p := ModelPage{Runtime: registry.Runtime{Device: c.device, Memory: c.mem}}
		if got := p.MemoryLine(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}
