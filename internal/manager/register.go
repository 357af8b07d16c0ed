package manager

import (
	"context"
	"io"
	"slices"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/loaders"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Listed is a model as lists show it.
type Listed struct {
	registry.Record
	Status     registry.Status
	Device     string
	Percent    int // of a load under way; 0 when it is not known
	PerMinute  int // requests
	Active     int
	Runtime    registry.Runtime
	Operation  *registry.Operation     // under way
	Changed    string                  // what is different on disk since the model was looked at, in words; "" nothing
	Artifact   *registry.ModelArtifact // what is known of its files; with Get only
	Deprecated bool

	CanSleep bool                    // a loaded model that can be put to sleep
	WhyAwake string                  // why a loaded one cannot, as a sentence
	Service  *registry.ServiceHealth // of one that runs elsewhere and is loaded
}

// Page is one page of models: store.Page with what is going on with each.
type Page struct {
	Items  []Listed
	Next   string // the After of the next page; "" at the end
	Total  int    // how many models match, on all pages
	Capped bool   // a search has more hits than Total, which is where the counting ended
}

// List lists models: the guide's list_available_models, a page at a time.
func (m *Manager) List(ctx context.Context, q store.ListQuery) (Page, error) {
	found, err := m.store.ListModels(ctx, q)
	if err != nil {
		return Page{}, err
	}
	page := Page{Items: make([]Listed, len(found.Items)), Next: found.Next, Total: found.Total, Capped: found.Capped}
	for i, it := range found.Items {
		page.Items[i] = m.enrich(it)
	}
	return page, nil
}

// Get returns one model with its state: the guide's get_model_configuration and what lists show. CodeNotFound.
func (m *Manager) Get(ctx context.Context, id string) (Listed, error) {
	it, err := m.store.Listed(ctx, id)
	if err != nil {
		return Listed{}, err
	}
	l := m.enrich(it)
	if a, ok, err := m.store.Artifact(ctx, id); err != nil {
		return Listed{}, err
	} else if ok && a.Ref == refKey(it.Model) {
		l.Artifact = &a
	}
	return l, nil
}

func (m *Manager) enrich(it store.Listed) Listed {
	l := Listed{Record: it.Record, Status: it.Status, Runtime: it.Runtime, Device: it.Runtime.Device, Deprecated: it.Registration == registry.RegistrationDeprecated}
	l.PerMinute = m.rates.perMinute(it.ModelID, m.now())
	if what, ok := m.changed.Load(it.ModelID); ok {
		l.Changed = what.(string)
	}
	v := m.peek(it.ModelID)
	if v == nil {
		return l
	}
	l.Runtime, l.Device = v.rt, v.rt.Device
	l.CanSleep, l.WhyAwake = m.sleeps(v.rt, v.inst)
	if o, ok := v.inst.(loaders.Observer); ok {
		s := o.Observe()
		l.Service = &s
	}
	l.Status = registry.DeriveStatus(it.Registration, v.rt.Artifact, v.rt.State)
	if v.track != nil {
		op := v.track.snapshot()
		l.Operation = &op
		if v.loadTask {
			l.Percent = v.track.percent()
		}
	}
	return l
}

// PutOptions say who changes a model and how.
type PutOptions struct {
	Actor     string
	Persist   bool  // also into SQLite for good and back into the models file
	IfVersion int64 // 0 any; otherwise CodeConflict if it changed meanwhile
	IfAbsent  bool
	Admin     bool                 // of the installation: may name what a sources.Gatekeeper keeps from others
	Audit     *registry.AuditEntry // stored in the transaction of a single registration
}

// Register registers a model or changes it: the guide's register_model. Secrets that came back redacted are kept as they
// are. An instance that is loaded goes on with the configuration it was loaded with. CodeInvalid, CodeConflict.
func (m *Manager) Register(ctx context.Context, model registry.Model, o PutOptions) (rec registry.Record, created bool, err error) {
	model = m.normal(model.WithDefaults())
	errs := registry.Validate(model)
	if len(errs) == 0 {
		errs = m.checkSource(ctx, model)
	}
	if len(errs) == 0 && !o.Admin {
		errs = m.adminOnly(ctx, model)
	}
	if len(errs) > 0 {
		return rec, false, &registry.Error{Code: registry.CodeInvalid, Op: "manager.Register", Msg: "The model is not valid", Fields: errs}
	}
	if len(model.CustomLoaderParams) > 0 {
		if old, err := m.store.Model(ctx, model.ModelID); err == nil {
			model.CustomLoaderParams = registry.KeepSecrets(model.CustomLoaderParams, old.CustomLoaderParams)
		}
	}
	toFile := o.Persist && m.Manifest != nil
	rec, created, err = m.store.PutModel(ctx, model, store.PutOptions{Actor: o.Actor, Persist: o.Persist, IfVersion: o.IfVersion, IfAbsent: o.IfAbsent, ToManifest: toFile, Audit: o.Audit})
	if err != nil {
		return rec, false, err
	}
	kind := registry.EventModelUpdated
	if created {
		kind = registry.EventModelRegistered
	}
	m.publishRecord(kind, rec)
	m.ledger.updateModel(rec.ModelID, func(r *registry.Reservation) { r.Pinned, r.Priority, r.Team = rec.Pinned, rec.Priority, rec.Team })
	m.noticer.notice(rec.ModelID)
	if toFile {
		m.writeback.kick()
	}
	return rec, created, nil
}

func (m *Manager) publishRecord(kind registry.EventKind, rec registry.Record) {
	rec.Model = rec.Redacted()
	m.bus.Publish(kind, rec.ModelID, rec)
}

// Delete removes a model that is not loaded. CodeNotFound, CodeBadState, CodeConflict.
func (m *Manager) Delete(ctx context.Context, id string, ifVersion int64, actor string) error {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return err
	}
	a, err := m.actor(ctx, id)
	if err != nil {
		return err
	}
	toFile := rec.Persist && m.Manifest != nil
	err = a.do(ctx, func() error {
		switch a.rt.State {
		case registry.RuntimeStopped, registry.RuntimeFailed:
		default:
			return registry.Errorf(registry.CodeBadState, "%s is in use (%s); unload it first", id, a.rt.State)
		}
		if err := m.store.DeleteModel(ctx, id, ifVersion, toFile); err != nil {
			return err
		}
		a.rt = registry.Runtime{ModelID: id, State: registry.RuntimeStopped, Generation: a.rt.Generation}
		a.forgetFetches()
		return nil
	})
	if err != nil {
		return err
	}
	m.rates.forget(id)
	m.changed.Delete(id)
	m.log.Info("Model deleted", "model", id, "actor", actor)
	m.bus.Publish(registry.EventModelDeleted, id, map[string]string{"model_id": id})
	if toFile {
		m.writeback.kick()
	}
	return nil
}

// SetRegistration approves, deprecates, archives or restores a model. A loaded model cannot be archived.
func (m *Manager) SetRegistration(ctx context.Context, id string, on registry.Trigger, actor string) (registry.Record, error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return rec, err
	}
	to, err := registry.Next(rec.Registration, on)
	if err != nil {
		return rec, err
	}
	if to == registry.RegistrationArchived {
		if v := m.peek(id); v != nil && v.rt.State != registry.RuntimeStopped && v.rt.State != registry.RuntimeFailed {
			return rec, registry.Errorf(registry.CodeBadState, "%s is in use (%s); unload it first", id, v.rt.State)
		}
	}
	rec, err = m.store.SetRegistration(ctx, id, to, actor)
	if err == nil {
		m.publishRecord(registry.EventModelUpdated, rec)
	}
	return rec, err
}

// InstanceInfo is the guide's LoadedModel: a ready instance and what it is. ModelClass and TokenizerClass stand for the
// types of model_object and tokenizer_object. They, DType, Parameters and Bytes are what the engine says, empty where it says
// nothing; Device is where the plan put it, in this machine's count.
type InstanceInfo struct {
	Config         registry.Model    `json:"config"`
	Engine         string            `json:"engine"`
	EngineVersion  string            `json:"engine_version,omitempty"`
	Device         string            `json:"device"`
	Endpoint       registry.Endpoint `json:"endpoint"`
	ModelClass     string            `json:"model_class"`
	TokenizerClass string            `json:"tokenizer_class"`
	DType          string            `json:"dtype,omitempty"`
	Parameters     int64             `json:"parameters,omitempty"`
	Bytes          int64             `json:"bytes,omitempty"` // of the weights in memory
	Memory         registry.Memory   `json:"memory"`
	InstanceID     string            `json:"instance_id"`
	ReadyAt        string            `json:"ready_at"`

	Service  *registry.ServiceHealth `json:"service,omitempty"` // of one that runs elsewhere
	CanSleep bool                    `json:"can_sleep"`
	WhyAwake string                  `json:"why_awake,omitempty"` // why it cannot sleep
	Unwell   string                  `json:"unwell,omitempty"`    // what is wrong with it although it runs, in words

	Activity *registry.Activity `json:"activity,omitempty"` // what its engine said last of its work
}

// Instance returns the ready instance of a model. CodeBadState when it is not loaded.
func (m *Manager) Instance(ctx context.Context, id string) (InstanceInfo, error) {
	rec, err := m.store.Model(ctx, id)
	if err != nil {
		return InstanceInfo{}, err
	}
	v := m.peek(id)
	if v == nil || v.rt.State != registry.RuntimeReady || v.rt.Endpoint == nil {
		return InstanceInfo{}, registry.Errorf(registry.CodeBadState, "%s is not loaded", id)
	}
	var service *registry.ServiceHealth
	if o, ok := v.inst.(loaders.Observer); ok {
		s := o.Observe()
		service = &s
	}
	can, why := m.sleeps(v.rt, v.inst)
	ep := *v.rt.Endpoint
	return InstanceInfo{
		Service: service, CanSleep: can, WhyAwake: why, Unwell: v.rt.Unwell, Activity: v.rt.Activity,
		Config: rec.Redacted(), Engine: v.rt.Engine, EngineVersion: v.rt.EngineVersion, Device: v.rt.Device, Endpoint: ep,
		ModelClass: ep.ModelClass, TokenizerClass: ep.TokenizerClass, DType: ep.DType, Parameters: ep.Parameters, Bytes: ep.Bytes, Memory: v.rt.Memory,
		InstanceID: v.rt.InstanceID, ReadyAt: v.rt.ReadyAt.UTC().Format("2006-01-02T15:04:05.000Z"),
	}, nil
}

// ImportResult says what an import did, or with a dry run would do.
type ImportResult struct {
	DryRun    bool                  `json:"dry_run"`
	Added     []string              `json:"added"`
	Changed   []string              `json:"changed"`
	Unchanged []string              `json:"unchanged"`
	Issues    []registry.FieldError `json:"issues"` // entries that were left out, and why
	Changes   []manifest.Change     `json:"changes,omitempty"`
}

// Import registers every good entry of a models file, all in one transaction, and reports the bad ones. allowed is
// asked for each entry's team; an entry of a team that the caller may not register for is an issue.
func (m *Manager) Import(ctx context.Context, doc *manifest.Document, o PutOptions, dryRun bool, allowed func(team string) error) (ImportResult, error) {
	res := ImportResult{DryRun: dryRun, Added: []string{}, Changed: []string{}, Unchanged: []string{}, Issues: append([]registry.FieldError{}, doc.Issues...)}
	kept := &manifest.Document{}
	for _, e := range doc.Entries {
		if allowed != nil {
			if err := allowed(e.Model.Team); err != nil {
				res.Issues = append(res.Issues, registry.FieldError{Field: e.Model.ModelID, Msg: err.Error(), Line: e.Line, Column: e.Column})
				continue
			}
		}
		e.Model = m.normal(e.Model)
		errs := m.checkSource(ctx, e.Model)
		if len(errs) == 0 && !o.Admin {
			errs = m.adminOnly(ctx, e.Model)
		}
		if len(errs) > 0 {
			for _, f := range errs {
				res.Issues = append(res.Issues, registry.FieldError{Field: f.Field, Msg: f.Msg, Line: e.Line, Column: e.Column})
			}
			continue
		}
		if dryRun {
			if is := m.differsInCase(ctx, e); is != nil {
				res.Issues = append(res.Issues, *is)
				continue
			}
		}
		if len(e.Model.CustomLoaderParams) > 0 {
			if old, err := m.store.Model(ctx, e.Model.ModelID); err == nil {
				e.Model.CustomLoaderParams = registry.KeepSecrets(e.Model.CustomLoaderParams, old.CustomLoaderParams)
			}
		}
		kept.Entries = append(kept.Entries, e)
	}
	if dryRun {
		res.Changes = manifest.Diff(kept, func(id string) (registry.Record, bool) {
			rec, err := m.store.Model(ctx, id)
			return rec, err == nil
		})
		for _, c := range res.Changes {
			switch c.Kind {
			case manifest.ChangeAdded:
				res.Added = append(res.Added, c.ModelID)
			case manifest.ChangeChanged:
				res.Changed = append(res.Changed, c.ModelID)
			case manifest.ChangeUnchanged:
				res.Unchanged = append(res.Unchanged, c.ModelID)
			case manifest.ChangeMissing: // an import never deletes
			}
		}
		return res, nil
	}
	toFile := o.Persist && m.Manifest != nil
	added, changed, unchanged, issues, err := m.putEntries(ctx, kept.Entries, store.PutOptions{Actor: o.Actor, Persist: o.Persist, ToManifest: toFile})
	if err != nil {
		return res, err
	}
	res.Issues = append(res.Issues, issues...)
	res.Added, res.Changed, res.Unchanged = append(res.Added, added...), append(res.Changed, changed...), append(res.Unchanged, unchanged...)
	for i, ids := range [][]string{added, changed} {
		kind := []registry.EventKind{registry.EventModelRegistered, registry.EventModelUpdated}[i]
		if len(ids) > noticeImports {
			// Thousands of events would only push others out of the replay: everybody takes a fresh snapshot instead.
			m.bus.Publish(registry.EventReset, "", map[string]int{"models": len(ids)})
			continue
		}
		for _, id := range ids {
			if rec, err := m.store.Model(ctx, id); err == nil {
				m.publishRecord(kind, rec)
				m.noticer.notice(id)
			}
		}
	}
	if toFile && len(added)+len(changed) > 0 {
		m.writeback.kick()
	}
	return res, nil
}

// Export writes the models of these teams (nil: all) as YAML, without secrets.
func (m *Manager) Export(ctx context.Context, w io.Writer, teams []string) error {
	return manifest.Export(w, func(yield func(registry.Record) error) error { return m.store.EachModel(ctx, teams, yield) })
}

// firstImport imports the models file once: at the very first start with it. Later starts take changes of the file by
// an import that a person asks for, so that a file from yesterday never undoes what was registered today.
func (m *Manager) firstImport(ctx context.Context) error {
	if m.Manifest == nil {
		return nil
	}
	key := "manifest.imported:" + m.Manifest.Path()
	_, done, err := m.store.Setting(ctx, key)
	if err != nil {
		return err
	}
	doc, err := m.Manifest.Read()
	if err != nil {
		if registry.CodeOf(err) == registry.CodeNotFound {
			m.log.Warn("The models file does not exist; it is made at the first registration", "path", m.Manifest.Path())
			return nil
		}
		m.log.Error("The models file cannot be read; the server starts without it", "path", m.Manifest.Path(), "err", err)
		m.setManifest(err, nil)
		return nil
	}
	m.setManifest(nil, doc.Issues)
	for _, is := range doc.Issues {
		m.log.Warn("An entry of the models file was left out", "path", m.Manifest.Path(), "line", is.Line, "column", is.Column, "field", is.Field, "problem", is.Msg)
	}
	if done {
		return nil
	}
	added, changed, _, issues, err := m.putEntries(ctx, doc.Entries, store.PutOptions{Actor: "models.yaml", Persist: true})
	if err != nil {
		m.log.Error("The models file could not be imported", "path", m.Manifest.Path(), "err", err)
		m.setManifest(err, doc.Issues)
		return nil
	}
	doc.Issues = append(doc.Issues, issues...)
	m.setManifest(nil, doc.Issues)
	if n := len(added) + len(changed); n <= noticeImports {
		for _, id := range slices.Concat(added, changed) {
			m.noticer.notice(id)
		}
	}
	m.log.Info("Models file imported", "path", m.Manifest.Path(), "added", len(added), "changed", len(changed), "left_out", len(doc.Issues))
	return m.store.SetSetting(ctx, key, m.now().UTC().Format("2006-01-02T15:04:05Z"))
}

// recheckManifest looks at the models file again if it could not be read at the start: it has just been written, so
// somebody has mended it.
func (m *Manager) recheckManifest() {
	if st := m.imported.Load(); st == nil || st.Err == "" {
		return
	}
	doc, err := m.Manifest.Read()
	if err != nil {
		m.setManifest(err, nil)
		return
	}
	m.setManifest(nil, doc.Issues)
}

// differsInCase returns the problem of an entry whose id differs only in case from a registered one, nil for any other.
// The store says so in the words of its CodeNotFound.
func (m *Manager) differsInCase(ctx context.Context, e manifest.Entry) *registry.FieldError {
	_, err := m.store.Model(ctx, e.Model.ModelID)
	if registry.CodeOf(err) != registry.CodeNotFound || !strings.Contains(err.Error(), "Did you mean") {
		return nil
	}
	return &registry.FieldError{Field: e.Model.ModelID, Msg: err.Error() + " Ids that differ only in case cannot both be registered", Line: e.Line, Column: e.Column}
}

// putEntries registers entries, all in one transaction, and leaves out those whose id differs only in case from a
// registered one.
func (m *Manager) putEntries(ctx context.Context, entries []manifest.Entry, o store.PutOptions) (added, changed, unchanged []string, issues []registry.FieldError, err error) {
	put := func() error {
		models := make([]registry.Model, len(entries))
		for i, e := range entries {
			models[i] = e.Model
		}
		added, changed, unchanged, err = m.store.PutModels(ctx, models, o)
		return err
	}
	if err = put(); registry.CodeOf(err) != registry.CodeConflict {
		return added, changed, unchanged, nil, err
	}
	var good []manifest.Entry
	for _, e := range entries {
		if is := m.differsInCase(ctx, e); is != nil {
			issues = append(issues, *is)
			continue
		}
		good = append(good, e)
	}
	entries = good
	err = put()
	return added, changed, unchanged, issues, err
}
