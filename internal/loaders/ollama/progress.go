package ollama

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// watchEvery is how often is looked at what llama-server has read.
const watchEvery = 100 * time.Millisecond

// watchWeights reports how much of the weights is in memory while Ollama loads them, until stop is called. Ollama does not
// tell and its llama-server writes no progress to a log, so the kernel is asked: what the process has read, or, where it
// maps the file, how much of the file it has in memory.
func (l *Loader) watchWeights(spec loaders.LoadSpec, report func(registry.Progress)) (stop func()) {
	total := spec.Artifact.Facts.WeightBytes
	say := func(done int64) {
		p := registry.Progress{Stage: registry.StageWeights, Msg: "Reading the weights"}
		if total > 0 {
			p.Done, p.Total, p.Unit = min(done, total), total, registry.UnitBytes
		}
		report(p)
	}
	say(0)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		pid, most := 0, int64(0)
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if pid == 0 {
				pid = l.runner(spec.InstanceID)
			}
			if n := readBytes(pid); pid != 0 && n > most {
				most = n
				say(n)
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// runner returns the process of an instance that has the model: llama-server is also run to look for devices. 0 when there
// is none.
func (l *Loader) runner(instance string) int {
	tagged, err := process.FindTagged(l.o.TagPrefix)
	if err != nil {
		return 0
	}
	for _, t := range tagged {
		if t.InstanceID != instance {
			continue
		}
		line, err := os.ReadFile("/proc/" + strconv.Itoa(t.PID) + "/cmdline")
		if err == nil && bytes.Contains(line, []byte("\x00--model\x00")) {
			return t.PID
		}
	}
	return 0
}

// readBytes returns what a process has read so far, or has of files in memory if that is more.
func readBytes(pid int) int64 {
	read := func(file, field string) int64 {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + file)
		if err != nil {
			return 0
		}
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, field+":"); ok {
				n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
				if err != nil {
					return 0
				}
				return n
			}
		}
		return 0
	}
	return max(read("io", "rchar"), read("status", "RssFile")<<10)
}
