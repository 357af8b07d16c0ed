package ollama

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ollama/ollama/api"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/httpengine"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// handleVersion is the version of sharedData in a Handle.
const handleVersion = 1

// How often a running server is asked whether it still has a model, and how often it may fail to answer before the
// instance counts as ended: a server that is updated is away for seconds.
const (
	lookEvery  = 3 * time.Second
	lookFor    = 10 * time.Second // one that takes the question and does not answer by then counts as silent
	maxSilence = 5
)

// sharedData is what a Handle keeps of a model in a server that is not ours. There is no process to find again.
type sharedData struct {
	Host     string            `json:"host"`
	Endpoint registry.Endpoint `json:"endpoint"`
}

// shared is a model in a server that somebody else runs, and others use. Load gives the server a model of this instance's
// own, made of the other by name with our parameters, which costs no bytes; Stop unloads it and takes it away again. What
// the server had before, or fetched for us, stays.
type shared struct {
	id   string
	data sharedData
	api  *api.Client

	stop sync.Once
	quit chan struct{} // closed by Stop: the end is wanted
	done chan struct{}
	err  error // written before done is closed
}

func newShared(id string, d sharedData) *shared {
	s := &shared{id: id, data: d, api: clientOf(d.Host), quit: make(chan struct{}), done: make(chan struct{})}
	go s.watch(lookEvery, lookFor)
	return s
}

// loadShared makes a running server load the model.
func (l *Loader) loadShared(ctx context.Context, prog program, spec loaders.LoadSpec, v params.Values, w weights, report func(registry.Progress)) (_ loaders.Instance, err error) {
	c := clientOf(prog.host.String())
	n := spec.Context
	if n <= 0 {
		n = contextFor(spec.Model, spec.Artifact.Facts, v)
	}
	report(registry.Progress{Stage: registry.StageEngine, Msg: "Using the Ollama at " + prog.host.Host})
	name := nameOf(spec.Model.ModelID) + "-" + slug(spec.InstanceID)
	d := sharedData{Host: prog.host.String(), Endpoint: endpointOf(spec, name, n)}
	d.Endpoint.BaseURL = strings.TrimSuffix(d.Host, "/")
	spec.Started(handleOf(spec.InstanceID, d))
	defer func() {
		if err == nil {
			return
		}
		gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if uerr := unload(gone, c, name); uerr != nil {
			l.o.Logger.Warn("A running Ollama kept what a load that failed had given it", "model", name, "err", uerr)
		}
		if ctx.Err() != nil {
			err = cancelled(spec)
			return
		}
		err = finish(err, prog)
	}()
	base, err := l.give(ctx, c, spec, prog, w, report)
	if err != nil {
		return nil, err
	}
	create := &api.CreateRequest{Model: name, From: base, Parameters: options(v, spec.Device, n, spec.Artifact.Facts), System: v.String("system", ""), Template: v.String("template", "")}
	if err := explain(c.Create(ctx, create, func(api.ProgressResponse) error { return nil })); err != nil {
		return nil, err
	}
	total := spec.Artifact.Facts.WeightBytes
	report(registry.Progress{Stage: registry.StageWeights, Total: total, Unit: unitOf(total), Msg: "Ollama reads the weights"})
	if err := load(ctx, c, name, spec.Artifact.Facts.Embedding); err != nil {
		return nil, err
	}
	report(registry.Progress{Stage: registry.StageWarmup, Msg: "Asking for a first answer"})
	if err := first(ctx, d.Endpoint.BaseURL, warmup(spec.Artifact.Facts, name)); err != nil {
		return nil, err
	}
	m, err := listed(ctx, c, name)
	if err != nil {
		return nil, err
	}
	loaded(m, &d.Endpoint)
	return newShared(spec.InstanceID, d), nil
}

func unitOf(total int64) registry.Unit {
	if total > 0 {
		return registry.UnitBytes
	}
	return ""
}

// finish gives every error of a load a failure with its kind.
func finish(err error, prog program) error {
	var e *registry.Error
	if errors.As(err, &e) && (e.Failure != nil && e.Failure.Kind != "" || e.Failure == nil && e.Code != registry.CodeUnavailable) {
		return err
	}
	f := registry.Failure{Kind: registry.FailureCrash, Msg: fmt.Sprintf("The Ollama at %s does not answer any more: %v", prog.host.Host, cause(err)), Hint: "Look at that server and its log, then load the model again."}
	if e != nil && e.Failure != nil {
		f.Msg, f.Hint = e.Failure.Msg, "Look at the log of the Ollama at "+prog.host.Host+"."
	}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: &f, Err: err}
}

// slug is an instance's id as a part of a name.
func slug(id string) string { return strings.TrimPrefix(nameOf(id), "llmm/") }

// give makes sure that the server has the weights, and returns the name that it has them under.
func (l *Loader) give(ctx context.Context, c *api.Client, spec loaders.LoadSpec, prog program, w weights, report func(registry.Progress)) (name string, err error) {
	say := newConversion(w, report)
	progress := func(p api.ProgressResponse) error {
		say.status(p)
		return nil
	}
	if w.library != "" {
		name = strings.TrimPrefix(w.library, "ollama://")
		if _, err := c.Show(ctx, &api.ShowRequest{Model: name}); err == nil {
			return name, nil
		} else if broken(err) {
			return "", err
		}
		// It has another folder of models than we have.
		host, _, _ := strings.Cut(name, "/")
		return name, explain(c.Pull(ctx, &api.PullRequest{Model: name, Insecure: slices.Contains(l.o.Insecure, host)}, progress))
	}
	files := w.files
	if files == nil {
		files = map[string]string{}
		for _, ly := range w.layers {
			files[filepath.Base(ly.path)] = ly.path
		}
	}
	w.files = files
	name, err = convertedName(spec.Model.ModelID, prog.version, w)
	if err != nil {
		return "", failedWith(err, spec.Artifact.Path)
	}
	if _, err := c.Show(ctx, &api.ShowRequest{Model: name}); err == nil {
		return name, nil
	} else if broken(err) {
		return "", err
	}
	if len(w.torch) > 0 {
		work, done, werr := l.workshop()
		if werr != nil {
			return "", werr
		}
		defer func() { err = errors.Join(err, done()) }()
		if w, err = l.rewrite(ctx, work, w, say, cost.here); err != nil {
			return "", err
		}
	}
	digests := map[string]string{}
	for file, path := range w.files {
		if digests[file], err = l.giveFile(ctx, c, prog, path, report); err != nil {
			return "", err
		}
	}
	return name, explainConversion(c.Create(ctx, &api.CreateRequest{Model: name, Files: digests, Quantize: w.quantize}, progress))
}

// giveFile makes the server have a file as a blob and returns its digest: by a copy that shares
// its blocks on the disk, where both of us use ModelsDir and the file system can do that, else by sending it. A hard link
// would not do: Ollama sets the times of blobs, which would be those of the user's file.
func (l *Loader) giveFile(ctx context.Context, c *api.Client, prog program, path string, report func(registry.Progress)) (string, error) {
	report(registry.Progress{Stage: registry.StageEngine, Msg: "Reading " + filepath.Base(path) + " for Ollama"})
	file, err := os.Open(path)
	if err != nil {
		return "", failedWith(err, path)
	}
	defer func() { _ = file.Close() }() // only read from
	sum := sha256.New()
	if _, err := io.Copy(sum, cancellable{ctx, file}); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", failedWith(err, path)
	}
	d := "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if has(ctx, prog, d) {
		return d, nil
	}
	if l.o.ModelsDir != "" {
		at := blobFile(filepath.Join(l.o.ModelsDir, "blobs"), d)
		if clone(path, at) == nil {
			if has(ctx, prog, d) {
				return d, nil
			}
			_ = os.Remove(at) // the server looks elsewhere
		}
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return "", failedWith(err, path)
	}
	report(registry.Progress{Stage: registry.StageEngine, Msg: "Sending " + filepath.Base(path) + " to Ollama"})
	return d, explain(c.CreateBlob(ctx, d, file))
}

// cancellable reads until its context ends.
type cancellable struct {
	ctx context.Context //nolint:containedctx // it is the reader's life
	r   io.Reader
}

func (c cancellable) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// has asks a server whether it has a blob; the api package does not know how.
func has(ctx context.Context, prog program, digest string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, prog.host.JoinPath("api/blobs", digest).String(), nil)
	if err != nil {
		return false
	}
	resp, err := straight.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// first sends the request whose answer means that the model works.
func first(ctx context.Context, base string, a httpengine.API) error {
	body, err := json.Marshal(a.Body)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+a.Path, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := straight.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && resp.StatusCode != http.StatusOK {
		return explain(fmt.Errorf("it refused a first request: %s", clip(string(text))))
	}
	return err
}

// unload makes a server let go of a model of ours: out of memory, then out of its list. A model that it does not have is
// let go of already.
func unload(ctx context.Context, c *api.Client, name string) error {
	absent := func(err error) bool {
		var status api.StatusError
		return errors.As(err, &status) && status.StatusCode == http.StatusNotFound
	}
	now := &api.Duration{}
	err := c.Generate(ctx, &api.GenerateRequest{Model: name, KeepAlive: now}, func(api.GenerateResponse) error { return nil })
	if err != nil {
		if absent(err) {
			return nil
		}
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := listed(ctx, c, name)
		if errors.Is(err, errNotLoaded) {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it is still in memory: %w", ctx.Err())
		case <-tick.C:
		}
	}
	if err := c.Delete(ctx, &api.DeleteRequest{Model: name}); err != nil && !absent(err) {
		return err
	}
	return nil
}

func handleOf(id string, d sharedData) registry.Handle {
	b, err := json.Marshal(d)
	if err != nil {
		b = nil // cannot happen: it holds strings and numbers
	}
	return registry.Handle{Loader: Name, Version: handleVersion, InstanceID: id, Data: b}
}

// recoverShared returns the model of a handle if the server still has it loaded.
func (l *Loader) recoverShared(ctx context.Context, h registry.Handle) (loaders.Instance, error) {
	gone := func(why string) error {
		return &registry.Error{Code: registry.CodeNotFound, Op: "loaders." + Name + ".Recover", Msg: fmt.Sprintf("Instance %s %s; load the model again", h.InstanceID, why)}
	}
	var d sharedData
	if h.Version != handleVersion || json.Unmarshal(h.Data, &d) != nil || d.Host == "" || d.Endpoint.Model == "" {
		return nil, gone("left a handle that cannot be read")
	}
	if _, err := listed(ctx, clientOf(d.Host), d.Endpoint.Model); err != nil {
		return nil, gone("is not in the memory of the Ollama at " + d.Host + " any more")
	}
	return newShared(h.InstanceID, d), nil
}

func (s *shared) Handle() registry.Handle     { return handleOf(s.id, s.data) }
func (s *shared) Endpoint() registry.Endpoint { return s.data.Endpoint }
func (s *shared) Done() <-chan struct{}       { return s.done }

// Err says why it ended; nil while it runs and after Stop.
func (s *shared) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Health asks the server whether it has the model loaded.
func (s *shared) Health(ctx context.Context) error {
	select {
	case <-s.done:
		return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Health", Msg: "The model has been unloaded", Err: s.err}
	default:
	}
	_, err := listed(ctx, s.api, s.data.Endpoint.Model)
	return err
}

// Held is what the server says that the model takes; see loaders.Holder.
func (s *shared) Held(ctx context.Context) (ram, gpu int64, err error) {
	return held(ctx, s.api, s.data.Endpoint.Model)
}

// Stop unloads the model and waits until the server shows that it is gone. CodeUnavailable when ctx ended before that, or
// the server refuses.
func (s *shared) Stop(ctx context.Context) error {
	s.stop.Do(func() { close(s.quit) })
	<-s.done
	// Also when the model had ended by itself: its name may be left. There is no killing a server that others use, so that
	// a context that has ended still gives it a moment.
	ctx, cancel := withPatience(ctx)
	defer cancel()
	err := unload(ctx, s.api, s.data.Endpoint.Model)
	if err == nil || broken(err) && ctx.Err() == nil {
		return nil // a server that is not there holds nothing
	}
	return &registry.Error{Code: registry.CodeUnavailable, Op: "ollama.Stop", Err: err, Msg: fmt.Sprintf(
		"The Ollama at %s did not unload %s: %v. Look at that server; `ollama stop %s` does the same", s.data.Host, s.data.Endpoint.Model, cause(err), s.data.Endpoint.Model)}
}

// patience is what a server gets to unload a model at least.
const patience = 10 * time.Second

func withPatience(ctx context.Context) (context.Context, context.CancelFunc) {
	if at, ok := ctx.Deadline(); ctx.Err() == nil && (!ok || time.Until(at) > patience) {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(context.WithoutCancel(ctx), patience)
}

// watch asks the server every so often and waits so long for an answer, until Stop, or until it has let go of the model.
func (s *shared) watch(every, patience time.Duration) {
	defer close(s.done)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-s.quit:
			cancel()
		case <-ctx.Done():
		}
	}()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for silent := 0; ; {
		select {
		case <-s.quit:
			return
		case <-tick.C:
		}
		one, over := context.WithTimeout(ctx, patience)
		_, err := listed(one, s.api, s.data.Endpoint.Model)
		over()
		switch {
		case err == nil:
			silent = 0
		case ctx.Err() != nil:
			return
		case errors.Is(err, errNotLoaded):
			s.err = s.failure("unloaded "+s.data.Endpoint.Model+" without being asked by us", "Somebody else uses that server: it makes room for what others load, and they can stop a model. Load it again, or leave OLLAMA_HOST out to have an Ollama of its own.")
			return
		default:
			if silent++; silent == maxSilence {
				s.err = s.failure("does not answer any more", "Look at that server and its log, then load the model again.")
				return
			}
		}
	}
}

func (s *shared) failure(how, hint string) error {
	f := &registry.Failure{Kind: registry.FailureCrash, Msg: fmt.Sprintf("The Ollama at %s %s", s.data.Host, how), Hint: hint}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "loaders." + Name, Msg: f.Msg, Failure: f, Err: errors.New(string(f.Kind))}
}
