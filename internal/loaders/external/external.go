// Package external is the loader of models that run elsewhere: services that answer the OpenAI API at a base URL, with a key
// if they ask for one. "Loading" one is asking whether it answers and has the model; nothing runs on this machine.
package external

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/loaders/params"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Name is the loader's name in a model's engine field.
const Name = "external"

const title = "External service"

// Options say which services may be reached, and how they are watched.
type Options struct {
	// AllowPrivate permits addresses of this machine and of private networks. They are looked at when a connection is
	// made, after the name was resolved, so that a name that a stranger controls cannot point inside.
	AllowPrivate bool

	Timeout time.Duration // of one question of ours; 20 seconds if 0. Requests of users have none
	Every   time.Duration // how often a service that nobody uses is asked whether it is there; 30 seconds if 0
	// Away is how long a service may be away before its instance ends. 10 minutes if 0: an outage shorter than that is told
	// to those who send requests, and is over when the service is back.
	Away   time.Duration
	Logger *slog.Logger
}

// Loader knows services elsewhere.
type Loader struct{ o Options }

var (
	_ loaders.Loader      = (*Loader)(nil)
	_ loaders.Reconnector = (*Loader)(nil)
	_ loaders.Estimator   = (*Loader)(nil)
)

// New returns the loader.
func New(o Options) *Loader {
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	if o.Every == 0 {
		o.Every = 30 * time.Second
	}
	if o.Away == 0 {
		o.Away = 10 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Loader{o: o}
}

var table = []params.Spec{
	{Param: loaders.Param{Name: "api_key", Kind: registry.KindString, Help: "The service's key, best as secret:NAME. It is sent to the service's own host only."}},
	{Param: loaders.Param{Name: "model", Kind: registry.KindString, Help: "The model's name at the service; model_id if not given."}},
	{Param: loaders.Param{Name: "apis", Kind: registry.KindStrings, Help: "What it answers: chat, completions, embeddings. Found out by asking if not given, which costs a few tokens."}},
}

// Info says that any format will do: the service has the weights.
func (l *Loader) Info() loaders.Info {
	return loaders.Info{
		Name: Name, Title: title,
		Sources: []registry.SourceType{registry.SourceExternal}, Formats: registry.Formats,
		Devices:  []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}, // whatever is asked for: it runs elsewhere
		APIs:     []registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings},
		Params:   params.Infos(table),
		HowToGet: "Nothing needs to be installed: register a model with source_type external_service and the service's base URL.",
	}
}

// Check always succeeds: there is nothing to be found on this host.
func (l *Loader) Check(context.Context) (loaders.Version, error) {
	return loaders.Version{Version: "OpenAI API v1", Path: "the model's source_path", Devices: l.Info().Devices}, nil
}

// Estimate says that nothing of this machine is taken.
func (l *Loader) Estimate(registry.Model, registry.Artifact, registry.Device) registry.Footprint {
	return registry.Footprint{Basis: "runs elsewhere"}
}

// data is what a Handle keeps. The key is not in it: after a restart it comes from the registry again.
type data struct {
	Endpoint registry.Endpoint `json:"endpoint"`
	LogPath  string            `json:"log_path"`
}

const handleVersion = 1

// settings are what a model says of its service.
type settings struct {
	base  *url.URL // without /v1
	key   string   // a secret
	model string
	apis  []registry.API
}

// read checks a model's fields. CodeInvalid names those at fault.
func read(m registry.Model) (settings, error) {
	v, err := params.Read(Name, m.CustomLoaderParams, table)
	if err != nil {
		return settings{}, err
	}
	s := settings{key: v.String("api_key", ""), model: v.String("model", m.ModelID)}
	var errs []registry.FieldError
	bad := func(field, format string, args ...any) {
		errs = append(errs, registry.FieldError{Field: field, Msg: fmt.Sprintf(format, args...)})
	}
	if m.SourceType != registry.SourceExternal {
		bad("engine", "external is for source_type external_service; set it to auto")
	}
	if s.base, err = baseURL(m.SourcePath); err != nil {
		bad("source_path", "%s", err.Error())
	}
	switch {
	case registry.IsReference(s.key):
		bad("custom_loader_params.api_key", "names a secret that this server does not have")
	case strings.ContainsFunc(s.key, func(r rune) bool { return r < ' ' || r > '~' }):
		bad("custom_loader_params.api_key", "holds characters that no key has, for example a line's end")
	}
	if list, ok := v["apis"].([]string); ok {
		for _, a := range list {
			if !slices.Contains([]registry.API{registry.APIChat, registry.APICompletions, registry.APIEmbeddings}, registry.API(a)) {
				bad("custom_loader_params.apis", "must be of chat, completions, embeddings, not %q", a)
				continue
			}
			s.apis = append(s.apis, registry.API(a))
		}
	}
	if len(errs) > 0 {
		return settings{}, &registry.Error{Code: registry.CodeInvalid, Op: "external.Load", Msg: "The service cannot be used", Fields: errs}
	}
	return s, nil
}

// baseURL returns the address that /v1/… is appended to. People give it with /v1 and without.
func baseURL(s string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimRight(s, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("must be a base URL that starts with http:// or https:// and names a host")
	}
	return url.Parse(strings.TrimRight(strings.TrimSuffix(u.String(), "/v1"), "/"))
}

// Load asks the service for its models and, unless apis says it, for what it answers.
func (l *Loader) Load(ctx context.Context, spec loaders.LoadSpec, report func(registry.Progress)) (loaders.Instance, error) {
	s, err := read(spec.Model)
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, cancelled(spec.Model.ModelID)
	}
	in := l.instance(spec.InstanceID, s, spec.LogPath)
	done := false
	defer func() {
		if !done {
			in.close()
		}
	}()
	report(registry.Progress{Stage: registry.StageEngine, Msg: "Asking " + s.base.Host + " for its models"})
	spec.Started(in.Handle())
	found, err := in.client.find(ctx, s.model)
	if err == nil {
		in.data.Endpoint.ContextLength = found.context()
		report(registry.Progress{Stage: registry.StageWarmup, Msg: "Asking for a first answer"})
		in.data.Endpoint.APIs = s.apis
		if len(s.apis) == 0 {
			in.data.Endpoint.APIs, err = in.client.apis(ctx, s.model)
		}
	}
	if ctx.Err() != nil {
		return nil, cancelled(spec.Model.ModelID)
	}
	if err != nil {
		in.note("could not be used: %v", err)
		return nil, err
	}
	in.note("answers %v as %s", in.data.Endpoint.APIs, s.model)
	done = true
	go in.watch()
	return in, nil
}

// Reconnect takes an instance up again after a restart of the manager. CodeNotFound if the handle is of another service than
// the model's; CodeUnavailable if the service does not answer.
func (l *Loader) Reconnect(ctx context.Context, h registry.Handle, m registry.Model) (loaders.Instance, error) {
	gone := func(why string) error {
		return &registry.Error{Code: registry.CodeNotFound, Op: "external.Reconnect", Msg: fmt.Sprintf("The session of instance %s %s; load the model again", h.InstanceID, why)}
	}
	var d data
	if h.Loader != Name || h.Version != handleVersion || json.Unmarshal(h.Data, &d) != nil {
		return nil, gone("cannot be read")
	}
	s, err := read(m)
	if err != nil {
		return nil, err
	}
	if d.Endpoint.BaseURL != s.base.String() || d.Endpoint.Model != s.model {
		return nil, gone("is of another service than the model names now")
	}
	in := l.instance(h.InstanceID, s, d.LogPath)
	in.data.Endpoint = d.Endpoint
	if err := in.Health(ctx); err != nil {
		in.close()
		return nil, err
	}
	go in.watch()
	return in, nil
}

func cancelled(id string) error {
	f := &registry.Failure{Kind: registry.FailureCancelled, Msg: "Loading " + id + " from an external service was cancelled"}
	return &registry.Error{Code: registry.CodeLoadingFailed, Op: "external.Load", Msg: f.Msg, Failure: f, Err: context.Canceled}
}
