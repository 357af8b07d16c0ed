package ollama

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// conversion turns what is done to a model before it is loaded into the bytes of one stage. Ollama tells of its own part
// only how far the last step is, so that the files are looked at, too.
type conversion struct {
	cost     cost
	quantize string
	report   func(registry.Progress)

	mu   sync.Mutex
	msg  string
	done int64
	pull map[string]api.ProgressResponse // by digest: what was fetched of each layer
}

func newConversion(w weights, report func(registry.Progress)) *conversion {
	return &conversion{cost: w.cost, quantize: w.quantize, report: report, pull: map[string]api.ProgressResponse{}}
}

// after keeps the bytes of a conversion that is over in what else is reported of its stage.
func after(last registry.Progress, report func(registry.Progress)) func(registry.Progress) {
	return func(p registry.Progress) {
		if p.Stage == last.Stage && p.Total == 0 {
			p.Done, p.Total, p.Unit = last.Total, last.Total, last.Unit
		}
		report(p)
	}
}

// steps are the words of Ollama's that people need not read, and ours.
var steps = []struct{ theirs, ours string }{
	{"starting", "Starting Ollama to convert the model"},
	{"converting", "Converting the model"},
	{"parsing", "Reading the model"},
	{"quantizing", "Quantising the model"},
	{"validating", "Checking the model"},
	{"verifying", "Checking the model"},
	{"writing", "Keeping the converted model"},
	{"pulling", "Ollama fetches the model"},
}

// tell reports a step and how many bytes of all are done. It never goes back.
func (c *conversion) tell(msg string, done, total int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if msg != "" {
		c.msg = msg
	}
	if c.report == nil || c.msg == "" {
		return
	}
	c.done = max(c.done, min(done, total))
	p := registry.Progress{Stage: registry.StageEngine, Msg: c.msg}
	if total > 0 {
		p.Done, p.Total, p.Unit = c.done, max(total, c.done), registry.UnitBytes
	}
	c.report(p)
}

// rewritten reports bytes of safetensors that PyTorch's files became.
func (c *conversion) rewritten(n int64) {
	c.tell("Converting the model: PyTorch to safetensors", min(n, c.cost.safetensors), c.cost.work())
}

// status reports what create or pull says.
func (c *conversion) status(p api.ProgressResponse) {
	msg := ""
	for _, s := range steps {
		if strings.HasPrefix(p.Status, s.theirs) {
			msg = s.ours
		}
	}
	switch {
	case msg == "":
	case strings.HasPrefix(p.Status, "pulling"):
		c.pulled(msg, p)
	case p.Total > 0:
		share := float64(min(p.Completed, p.Total)) / float64(p.Total)
		c.tell(c.quantising(msg), c.cost.safetensors+c.cost.gguf+int64(share*float64(c.cost.gguf)), c.cost.work())
	case strings.HasPrefix(p.Status, "converting"):
		c.tell(c.quantising(msg), c.cost.safetensors, c.cost.work())
	default:
		c.tell(c.quantising(msg), 0, c.cost.work())
	}
}

func (c *conversion) quantising(msg string) string {
	if c.quantize != "" && strings.HasPrefix(msg, "Converting") {
		msg += " and quantising it to " + c.quantize // of which create says nothing until it is done
	}
	return msg
}

// pulled adds up the layers of a model that a server fetches one after the other.
func (c *conversion) pulled(msg string, p api.ProgressResponse) {
	c.mu.Lock()
	if p.Digest != "" {
		c.pull[p.Digest] = p
	}
	var done, total int64
	for _, ly := range c.pull {
		done, total = done+ly.Completed, total+ly.Total
	}
	c.mu.Unlock()
	c.tell(msg, done, max(total, c.cost.pulled))
}

// watch looks how much of the model Ollama has written while it converts, below its folder of models, until stop is called.
func (c *conversion) watch(models string) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(watchEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			// Ollama's name for what it makes of safetensors; not found under another name, it is not counted.
			if n := allocated(filepath.Join(quoteGlob(models), "ollama-safetensors*", "fp16*")); n > 0 {
				c.tell("", c.cost.safetensors+min(n, c.cost.gguf), c.cost.work())
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// allocated is what files take on the disk, in bytes.
func allocated(pattern string) (sum int64) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return 0
	}
	for _, p := range found {
		if fi, err := os.Lstat(p); err == nil && fi.Mode().IsRegular() {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				sum += st.Blocks * 512
			}
		}
	}
	return sum
}
