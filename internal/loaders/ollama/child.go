package ollama

import (
	"context"
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// runnerEvery is how often is looked whether the llama-server below an Ollama still runs.
const runnerEvery = time.Second

// child is a model in an Ollama of its own. It has no key: it is no loaders.Authenticator.
//
// It ends with its Ollama, and also when the llama-server that has the model dies: Ollama alone would start another at
// the next request, and nobody would learn that the kernel had ended one because memory ran out.
type child struct {
	in       *httpengine.Instance
	api      *api.Client
	ep       registry.Endpoint
	stopping atomic.Bool
	done     chan struct{}
	err      error // written before done is closed
}

func (l *Loader) newChild(ctx context.Context, in *httpengine.Instance) *child {
	c := &child{in: in, api: clientOf(in.Endpoint().BaseURL), ep: in.Endpoint(), done: make(chan struct{})}
	ctx, cancel := context.WithTimeout(ctx, lookFor)
	defer cancel()
	if m, err := listed(ctx, c.api, c.ep.Model); err == nil { // what it does not tell stays empty
		loaded(m, &c.ep)
	}
	go func() {
		defer close(c.done)
		c.watch(l)
	}()
	return c
}

func (c *child) Handle() registry.Handle     { return c.in.Handle() }
func (c *child) Endpoint() registry.Endpoint { return c.ep }
func (c *child) Done() <-chan struct{}       { return c.done }

// Err says why it ended; nil while it runs and after Stop.
func (c *child) Err() error {
	select {
	case <-c.done:
		return c.err
	default:
		return nil
	}
}

// Stop ends Ollama and all below it; see loaders.Instance.
func (c *child) Stop(ctx context.Context) error {
	c.stopping.Store(true)
	if err := c.in.Stop(ctx); err != nil {
		return err
	}
	<-c.done
	return nil
}

// Health asks Ollama whether it has the model loaded. CodeUnavailable if it does not, or does not answer.
func (c *child) Health(ctx context.Context) error {
	if err := c.in.Health(ctx); err != nil {
		return err
	}
	_, err := listed(ctx, c.api, c.in.Endpoint().Model)
	return err
}

// Held is what Ollama says that the model takes; see loaders.Holder.
func (c *child) Held(ctx context.Context) (ram, gpu int64, err error) {
	return held(ctx, c.api, c.in.Endpoint().Model)
}

// watch returns when nothing of the instance runs any more.
func (c *child) watch(l *Loader) {
	tick := time.NewTicker(runnerEvery)
	defer tick.Stop()
	find := func() (process.Identity, error) { return process.IdentityOf(l.runner(c.in.Handle().InstanceID)) }
	runner, err := find() // none yet where it died at once
	if err != nil {
		l.o.Logger.Debug("an Ollama has no llama-server", "instance", c.in.Handle().InstanceID)
	}
	for missing := 0; ; {
		select {
		case <-c.in.Done():
			c.err = c.in.Err()
			return
		case <-tick.C:
		}
		if runner.Alive() {
			missing = 0
			continue
		}
		// Ollama may have put another in its place. Two looks: it may be about to.
		if id, err := find(); err == nil {
			runner = id
			continue
		}
		if missing++; missing < 2 || !c.answers() {
			continue
		}
		err := c.lost()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		if kerr := c.in.Stop(ended); kerr != nil {
			err = errors.Join(err, kerr)
		}
		<-c.in.Done()
		c.err = err
		return
	}
}

// answers reports whether Ollama itself is well and nobody has asked it to end: else its end is told by the instance.
func (c *child) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return !c.stopping.Load() && c.in.Health(ctx) == nil && !c.stopping.Load()
}

// lost says that llama-server has died, and why as far as the log tells.
func (c *child) lost() error {
	var at struct {
		LogPath   string `json:"log_path"`
		LogOffset int64  `json:"log_offset"`
	}
	var tail []string
	if json.Unmarshal(c.in.Handle().Data, &at) == nil {
		tail = process.Tail(at.LogPath, at.LogOffset, httpengine.TailLines)
	}
	f := diagnose(tail, process.Exit{})
	if f.Msg == "" {
		f = registry.Failure{Kind: registry.FailureCrash, Msg: "Ollama's llama-server, which had the model, ended without being asked to",
			Hint: "Most likely the kernel ended it because memory ran out: look for \"Out of memory\" in dmesg, then give the model a shorter context_length or unload others. Otherwise it crashed, and the log's last lines say where, or somebody killed it."}
	}
	f.LogTail = tail
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: &f, Err: errors.New(string(f.Kind))}
}
