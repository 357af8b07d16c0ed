package manager

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/tiny"
	"github.com/industriverse/llmmodelmanager/internal/netaddr"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// SelfTestOptions say how an engine is to be tried.
type SelfTestOptions struct {
	Device registry.Device // where the tiny model is loaded; "" is auto
	Model  string          // of the engine external: the one whose service is asked; "" all of them
	Actor  string
}

// SelfTest tries an engine in the background: a tiny model is made, loaded as any other, asked once and unloaded, and the
// operation says what was measured at each step. Of the engine external the services of the registered models are asked, of
// the engine command each program is looked at. Nothing stays behind, however it ends. CodeNotFound, CodeInvalid, CodeBusy
// while something else is under way with the engine.
func (m *Manager) SelfTest(ctx context.Context, name string, o SelfTestOptions) (registry.Operation, error) {
	l, err := m.engine(name)
	if err != nil {
		return registry.Operation{}, err
	}
	o.Device = cmp.Or(o.Device, registry.DeviceAuto)
	if !slices.Contains(registry.Devices, o.Device) {
		return registry.Operation{}, &registry.Error{Code: registry.CodeInvalid, Msg: "The self-test is not valid",
			Fields: []registry.FieldError{{Field: "device", Msg: fmt.Sprintf("must be auto, cuda or cpu, not %q", o.Device)}}}
	}
	if o.Model != "" {
		rec, err := m.store.Model(ctx, o.Model)
		if err != nil {
			return registry.Operation{}, err
		}
		if name != "external" || rec.SourceType != registry.SourceExternal {
			return registry.Operation{}, &registry.Error{Code: registry.CodeInvalid, Msg: "The self-test is not valid",
				Fields: []registry.FieldError{{Field: "model", Msg: "must be one that runs at an external service; other engines are tried with a tiny model of their own"}}}
		}
	}
	info := l.Info()
	begin := func(stages []registry.StageName, run func(context.Context, *tracker) (string, error)) (registry.Operation, error) {
		return m.beginEngineJob(registry.OperationSelfTest, info, o.Actor, "asked for", stages, run)
	}
	if p, ok := l.(loaders.Parts); ok {
		return begin([]registry.StageName{registry.StageCheck}, func(ctx context.Context, t *tracker) (string, error) { return m.tryParts(ctx, t, l, p) })
	}
	if slices.Equal(info.Sources, []registry.SourceType{registry.SourceExternal}) {
		return begin([]registry.StageName{registry.StageCheck, registry.StageAsk}, func(ctx context.Context, t *tracker) (string, error) { return m.tryServices(ctx, t, o) })
	}
	return begin(registry.SelfTestStages, func(ctx context.Context, t *tracker) (string, error) { return m.tryEngine(ctx, t, l, o) })
}

// selfTestDir holds the tiny models while they are used.
func (m *Manager) selfTestDir() string { return filepath.Join(m.DataDir, "self-test") }

// tryEngine loads a tiny model and asks it.
func (m *Manager) tryEngine(ctx context.Context, t *tracker, l loaders.Loader, o SelfTestOptions) (string, error) {
	info := l.Info()
	t.stage(registry.StageCheck, "")
	v, err := m.check(l).wait(ctx)
	if err != nil {
		return "", err
	}
	t.stage(registry.StageCheck, fmt.Sprintf("%s %s at %s", info.Title, v.Version, v.Path))
	at := slices.IndexFunc(tiny.Formats, func(f registry.Format) bool { return slices.Contains(info.Formats, f) })
	if at < 0 {
		return "", registry.Errorf(registry.CodeUnsupported, "%s loads %s, and a tiny model can be made only as %s", info.Title, joinFormats(info.Formats), joinFormats(tiny.Formats))
	}
	t.stage(registry.StageMake, "")
	id := "self-test/" + info.Name + "-" + t.op.ID[len(t.op.ID)-6:]
	dir := filepath.Join(m.selfTestDir(), t.op.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", registry.Errorf(registry.CodeUnavailable, "The data folder cannot be written to: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }() // what cannot be removed goes at the next start
	path, size, err := tiny.Write(dir, tiny.Formats[at])
	if err != nil {
		return "", err
	}
	t.stage(registry.StageMake, fmt.Sprintf("%s of random weights as %s", registry.Bytes(size), tiny.Formats[at]))

	model := registry.Model{ModelID: id, SourceType: registry.SourceLocal, SourcePath: path, ModelFormat: tiny.Formats[at], Engine: info.Name, DevicePreference: o.Device,
		ContextLength: tiny.ContextLength, Priority: -100, Description: "Made by the self-test of " + info.Title + ". It goes by itself."}
	if tr, ok := l.(loaders.Trier); ok {
		model.CustomLoaderParams = tr.TrialParams()
	}
	if _, _, err := m.Register(ctx, model, PutOptions{Actor: o.Actor, IfAbsent: true, Admin: true}); err != nil {
		return "", err
	}
	defer m.forgetTrial(ctx, id, o.Actor)
	cause := "self-test of " + info.Title
	began := m.now()
	op, err := m.Load(ctx, id, LoadOptions{Actor: o.Actor, Cause: cause})
	if err != nil {
		return "", err
	}
	if op, err = m.follow(ctx, t, registry.StageLoad, op); err != nil {
		return "", err
	}
	loaded := m.now().Sub(began)
	t.stage(registry.StageLoad, op.Outcome)
	t.stage(registry.StageAsk, "")
	took, says, err := m.tryModel(ctx, id)
	if err != nil {
		return "", err
	}
	t.stage(registry.StageAsk, says)
	op, _, err = m.Unload(ctx, id, UnloadOptions{Actor: o.Actor, Cause: cause})
	if err != nil {
		return "", err
	}
	if op, err = m.follow(ctx, t, registry.StageUnload, op); err != nil {
		return "", err
	}
	t.stage(registry.StageUnload, op.Outcome)
	t.mu.Lock()
	t.op.Released = op.Released
	t.mu.Unlock()
	return fmt.Sprintf("%s works: a tiny model was loaded in %s and answered in %s.", info.Title, short(loaded), short(took)), nil
}

func short(d time.Duration) time.Duration {
	if d < time.Second {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Millisecond)
}

// forgetTrial takes a self-test's model away again, also after the self-test was cancelled.
func (m *Manager) forgetTrial(ctx context.Context, id, actor string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.StopTimeout+m.DrainTimeout)
	defer cancel()
	op, _, err := m.Unload(ctx, id, UnloadOptions{Actor: actor, Cause: "the self-test has ended"})
	if err == nil {
		_, err = m.Await(ctx, op.ID)
	}
	if err == nil {
		err = m.Delete(ctx, id, 0, actor)
	}
	if err != nil && m.ctx.Err() == nil && !m.isClosed() { // at the end of the server all of it goes anyway
		m.log.Warn("The model of a self-test could not be taken away", "model", id, "err", err)
	}
}

// follow waits for an operation that is a step of another, and shows what it is doing. An operation that failed or was
// cancelled is an error.
func (m *Manager) follow(ctx context.Context, t *tracker, stage registry.StageName, op registry.Operation) (registry.Operation, error) {
	t.stage(stage, "")
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	done := make(chan struct{})
	if v, ok := m.live.Load(op.ID); ok {
		done = v.(*tracker).done
	} else {
		close(done)
	}
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			return op, ctx.Err()
		case <-done:
			ended = true
		case <-tick.C:
			if v, ok := m.live.Load(op.ID); ok {
				if line := stageLine(v.(*tracker).snapshot()); line != "" {
					t.stage(stage, line)
				}
			}
		}
	}
	op, err := m.Operation(ctx, op.ID)
	if err != nil {
		return op, err
	}
	switch op.State {
	case registry.OperationFailed:
		return op, op.Error.AsError()
	case registry.OperationCancelled:
		return op, registry.Errorf(registry.CodeUnavailable, "Somebody cancelled the %s of the self-test's model. %s", op.Kind, op.Outcome)
	case registry.OperationSucceeded, registry.OperationQueued, registry.OperationRunning, registry.OperationPaused:
	}
	return op, nil
}

// stageLine is the stage that an operation is in, in a few words.
func stageLine(op registry.Operation) string {
	for _, s := range op.Stages {
		if s.State == registry.StageRunning {
			line := string(s.Name)
			if s.Msg != "" {
				line += ": " + s.Msg
			}
			return line
		}
	}
	return ""
}

// maxTrial bounds what is read of an answer to a self-test, in bytes.
const maxTrial = 1 << 20

// tryModel asks a ready model once, and says how long the answer took and what it was.
func (m *Manager) tryModel(ctx context.Context, id string) (time.Duration, string, error) {
	lease, ok, err := m.lease(ctx, id)
	if err != nil {
		return 0, "", err
	}
	if !ok {
		return 0, "", registry.Errorf(registry.CodeUnavailable, "%s was unloaded before it could be asked", id)
	}
	defer lease.Release()
	ep := lease.Endpoint
	path, body := trialRequest(ep.APIs, cmp.Or(ep.Model, id))
	b, err := json.Marshal(body)
	if err != nil {
		return 0, "", err
	}
	base, err := netaddr.ParseBase(ep.BaseURL)
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base.At(path).String(), bytes.NewReader(b))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	if lease.Authorization != "" {
		req.Header.Set("Authorization", lease.Authorization)
	}
	transport := lease.Transport
	if transport == nil {
		own := &http.Transport{}
		defer own.CloseIdleConnections()
		transport = own
	}
	began := time.Now()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return 0, "", registry.Errorf(registry.CodeUnavailable, "The engine did not answer %s: %w", path, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxTrial))
	took := time.Since(began)
	if err != nil {
		return took, "", registry.Errorf(registry.CodeUnavailable, "The engine broke its answer to %s off: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return took, "", registry.Errorf(registry.CodeUnavailable, "The engine answered %s with status %d: %s", path, resp.StatusCode, clipLine(string(raw)))
	}
	says, err := trialAnswer(raw)
	if err != nil {
		return took, "", registry.Errorf(registry.CodeUnavailable, "The engine's answer to %s is none: %w", path, err)
	}
	return took, says + " in " + short(took).String(), nil
}

func trialRequest(apis []registry.API, model string) (string, map[string]any) {
	switch {
	case slices.Contains(apis, registry.APICompletions):
		return "/v1/completions", map[string]any{"model": model, "prompt": "Hi", "max_tokens": 8, "temperature": 0}
	case slices.Contains(apis, registry.APIChat):
		return "/v1/chat/completions", map[string]any{"model": model, "messages": []any{map[string]any{"role": "user", "content": "Hi"}}, "max_tokens": 8, "temperature": 0}
	}
	return "/v1/embeddings", map[string]any{"model": model, "input": "Hi"}
}

// trialAnswer says what an answer in the OpenAI dialect holds. The words of random weights make no sense, so they are counted.
func trialAnswer(raw []byte) (string, error) {
	var a struct {
		Choices []struct {
			Text    *string `json:"text"`
			Message *struct {
				Content string `json:"content"`
			} `json:"message"`
		} `json:"choices"`
		Data []struct {
			Embedding []float64 `json:"embedding"`
		} `json:"data"`
		Usage struct {
			Completion int `json:"completion_tokens"`
		} `json:"usage"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return "", fmt.Errorf("it is no JSON: %s", clipLine(string(raw)))
	}
	switch {
	case len(a.Choices) > 0 && (a.Choices[0].Text != nil || a.Choices[0].Message != nil):
		n := a.Usage.Completion
		if n == 1 {
			return "Answered 1 token", nil
		}
		return fmt.Sprintf("Answered %d tokens", n), nil
	case len(a.Data) > 0 && len(a.Data[0].Embedding) > 0:
		return fmt.Sprintf("Answered a vector of %d numbers", len(a.Data[0].Embedding)), nil
	}
	return "", fmt.Errorf("it has neither text nor numbers: %s", clipLine(string(raw)))
}

// clipLine makes foreign text fit for a message.
func clipLine(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + " …"
	}
	return s
}

// tryParts looks at each program that an engine stands for.
func (m *Manager) tryParts(ctx context.Context, t *tracker, l loaders.Loader, p loaders.Parts) (string, error) {
	t.stage(registry.StageCheck, "Looking for the programs")
	if _, err := m.check(l).wait(ctx); err != nil {
		return "", err
	}
	var good, bad []string
	for _, part := range p.Parts(ctx) {
		if part.Problem != "" {
			bad = append(bad, part.Name+": "+part.Problem)
			continue
		}
		says := part.Name + ": " + part.Program
		if part.Version != "" {
			says += " " + part.Version
		}
		good = append(good, says)
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	t.stage(registry.StageCheck, strings.Join(slices.Concat(good, bad), "; "))
	if len(bad) > 0 {
		return "", registry.Errorf(registry.CodeUnavailable, "%d of %d commands cannot be run. %s", len(bad), len(good)+len(bad), strings.Join(bad, "; "))
	}
	return "Every command's program is here. " + strings.Join(good, "; "), nil
}

// maxServices bounds how many services one self-test asks.
const maxServices = 50

// tryServices asks the services of the registered models whether they are there and have the model. A model that is not
// loaded is loaded for it, which takes nothing of this machine, and forgotten again.
func (m *Manager) tryServices(ctx context.Context, t *tracker, o SelfTestOptions) (string, error) {
	t.stage(registry.StageCheck, "")
	ids := []string{o.Model}
	if o.Model == "" {
		page, err := m.List(ctx, store.ListQuery{SourceType: registry.SourceExternal, Limit: maxServices, NoTotal: true})
		if err != nil {
			return "", err
		}
		ids = nil
		for _, l := range page.Items {
			ids = append(ids, l.ModelID)
		}
	}
	if len(ids) == 0 {
		return "", registry.Errorf(registry.CodeBadState, "No model with source_type external_service is registered, so that there is no service to ask. Register one first")
	}
	var good, bad []string
	for i, id := range ids {
		t.report(registry.Progress{Stage: registry.StageAsk, Done: int64(i), Total: int64(len(ids)), Unit: registry.UnitFiles, Msg: "Asking the service of " + id})
		took, err := m.tryService(ctx, id, o.Actor)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err != nil {
			bad = append(bad, id+": "+registry.AsError(err).Error())
			continue
		}
		good = append(good, fmt.Sprintf("%s answered in %s", id, short(took)))
	}
	t.stage(registry.StageAsk, strings.Join(slices.Concat(bad, good), "; "))
	if len(bad) > 0 {
		return "", registry.Errorf(registry.CodeUnavailable, "%d of %d services do not answer as they should. %s", len(bad), len(ids), strings.Join(bad, "; "))
	}
	return "Every service answers: " + strings.Join(good, "; ") + ".", nil
}

// tryService asks one service, and says how long its answer took.
func (m *Manager) tryService(ctx context.Context, id, actor string) (time.Duration, error) {
	v := m.peek(id)
	if v == nil || v.inst == nil || v.rt.State != registry.RuntimeReady {
		op, err := m.Load(ctx, id, LoadOptions{Actor: actor, Cause: "self-test of the external service"})
		if err != nil {
			return 0, err
		}
		if op, err = m.Await(ctx, op.ID); err != nil {
			return 0, err
		}
		if op.State != registry.OperationSucceeded {
			return 0, cmp.Or(op.Error.AsError(), error(registry.Errorf(registry.CodeUnavailable, "The load was %s", op.State)))
		}
		defer func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.DrainTimeout)
			defer cancel()
			if _, _, err := m.Unload(ctx, id, UnloadOptions{Actor: actor, Cause: "the self-test has ended"}); err != nil && !m.isClosed() {
				m.log.Warn("A service's session could not be ended after a self-test", "model", id, "err", err)
			}
		}()
		if v = m.peek(id); v == nil || v.inst == nil {
			return 0, registry.Errorf(registry.CodeUnavailable, "It was unloaded before it could be asked")
		}
	}
	began := time.Now()
	err := v.inst.Health(ctx)
	return time.Since(began), err
}
