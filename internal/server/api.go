package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// Limits on bodies, in bytes.
const (
	maxModelBody  = 1 << 20
	maxImportBody = 64 << 20
)

func (s *Server) apiRoutes() []route {
	const p = "/api/v1"
	return []route{
		{"GET", p + "/models", auth.ModelList, s.listModels},
		{"POST", p + "/models", auth.ModelRegister, s.registerModel},
		{"GET", p + "/models/:id", auth.ModelRead, s.getModel},
		{"PUT", p + "/models/:id", auth.ModelEdit, s.putModel},
		{"PATCH", p + "/models/:id", auth.ModelEdit, s.patchModel},
		{"DELETE", p + "/models/:id", auth.ModelDelete, s.deleteModel},
		{"GET", p + "/models/:id/plan", auth.ModelRead, s.planModel},
		{"POST", p + "/models/:id/load", auth.ModelLoad, s.loadModel},
		{"POST", p + "/models/:id/unload", auth.ModelUnload, s.unloadModel},
		{"POST", p + "/models/:id/sleep", auth.ModelUnload, s.sleepModel},
		{"POST", p + "/models/:id/wake", auth.ModelLoad, s.wakeModel},
		{"POST", p + "/models/:id/instance", auth.ModelUse, s.modelInstance},
		{"GET", p + "/models/:id/logs", auth.LogsRead, s.modelLogs},
		{"POST", p + "/models/:id/registration", auth.RegistrationApprove, s.setRegistration},
		{"POST", p + "/plan", auth.ModelList, s.planUnregistered},
		{"POST", p + "/models/:id/fetch", auth.ModelFetch, s.fetchModel},
		{"POST", p + "/lookup", auth.ModelList, s.lookUp},
		{"GET", p + "/operations", auth.ModelList, s.listOperations},
		{"GET", p + "/operations/:op", auth.OperationRead, s.getOperation},
		{"DELETE", p + "/operations/:op", auth.OperationCancel, s.cancelOperation},
		{"POST", p + "/operations/:op/pause", auth.ModelFetch, s.pauseOperation},
		{"POST", p + "/operations/:op/resume", auth.ModelFetch, s.resumeOperation},
		{"GET", p + "/events", auth.EventsRead, s.streamEvents},
		{"GET", p + "/resources", auth.ResourcesRead, s.getResources},
		{"GET", p + "/engines", auth.EnginesRead, s.listEngines},
		{"GET", p + "/engines/:name", auth.EnginesRead, s.getEngine},
		{"DELETE", p + "/engines/:name", auth.EngineInstall, s.removeEngine},
		{"POST", p + "/engines/:name/install", auth.EngineInstall, s.installEngine},
		{"POST", p + "/engines/:name/self-test", auth.EngineTest, s.testEngine},
		{"POST", p + "/import", auth.ManifestImport, s.importManifest},
		{"GET", p + "/export", auth.ManifestExport, s.exportManifest},
		{"GET", p + "/manifest", auth.ManifestExport, s.manifestStatus},
	}
}

// apiModel is a model as the API shows it: the guide's fields, secrets removed, and its state.
type apiModel struct {
	registry.Record
	Status         registry.Status   `json:"status"`
	Device         string            `json:"device"` // "" when it is not loaded
	Engine         string            `json:"engine"`
	LoadedEngine   string            `json:"loaded_engine,omitempty"`
	Unwell         string            `json:"unwell,omitempty"`
	Percent        int               `json:"percent,omitempty"`
	RequestsPerMin int               `json:"requests_per_minute"`
	Memory         *registry.Memory  `json:"memory,omitempty"`
	Failure        *registry.Failure `json:"failure,omitempty"`
	OperationID    string            `json:"operation_id,omitempty"`
	ReadyAt        time.Time         `json:"ready_at,omitzero"`
	LastUsedAt     time.Time         `json:"last_used_at,omitzero"`

	ArtifactState registry.ArtifactState  `json:"artifact_state"`
	Changed       string                  `json:"changed,omitempty"`  // what is different on disk, in words
	Artifact      *registry.ModelArtifact `json:"artifact,omitempty"` // not in lists
	Loaded        *loadedModel            `json:"loaded,omitempty"`   // not in lists

	Activity *registry.Activity `json:"activity,omitempty"` // while it is ready; not in lists
}

// loadedModel is what an engine says that it has loaded; see registry.Endpoint.
type loadedModel struct {
	ModelClass     string `json:"model_class,omitempty"`
	TokenizerClass string `json:"tokenizer_class,omitempty"`
	Device         string `json:"device,omitempty"`
	DType          string `json:"dtype,omitempty"`
	Parameters     int64  `json:"parameters,omitempty"`
	Bytes          int64  `json:"bytes,omitempty"`
}

// loadedOf is what the engine of a model says that it has loaded, nil when it is not loaded or its engine tells nothing.
func loadedOf(rt registry.Runtime) *loadedModel {
	if rt.Endpoint == nil || !rt.State.HoldsMemory() {
		return nil
	}
	e := rt.Endpoint
	l := loadedModel{ModelClass: e.ModelClass, TokenizerClass: e.TokenizerClass, Device: e.Device, DType: e.DType, Parameters: e.Parameters, Bytes: e.Bytes}
	if l == (loadedModel{}) {
		return nil
	}
	return &l
}

// apiModelOf shows a model to the caller: without secrets, and without log lines for who may not read logs.
func (s *Server) apiModelOf(c echo.Context, l *manager.Listed) apiModel {
	m := apiModel{
		Record: l.Record, Status: l.Status, Device: l.Device, Engine: l.Record.Engine, LoadedEngine: l.Runtime.Engine, Unwell: l.Runtime.Unwell, Percent: l.Percent, RequestsPerMin: l.PerMinute,
		Failure: l.Runtime.Failure, OperationID: l.Runtime.OperationID, LastUsedAt: l.Runtime.LastUsedAt,
		ArtifactState: l.Runtime.Artifact, Changed: l.Changed, Artifact: l.Artifact,
	}
	if m.ArtifactState == "" {
		m.ArtifactState = registry.ArtifactAbsent
	}
	if l.Operation != nil {
		m.OperationID = l.Operation.ID
	}
	m.Record.Model = l.Redacted()
	if m.Failure != nil && len(m.Failure.LogTail) > 0 && !s.mayReadLog(c, l.Team) {
		f := *m.Failure
		f.LogTail, m.Failure = nil, &f
	}
	if l.Runtime.State.HoldsMemory() {
		mem := l.Runtime.Memory
		m.Memory, m.ReadyAt = &mem, l.Runtime.ReadyAt
	} else {
		m.LoadedEngine = ""
	}
	return m
}

// MarshalJSON writes the guide's optional fields as null where they are not given, as a Python client expects.
func (m apiModel) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	err := m.writeTo(&b, json.NewEncoder(&b))
	return b.Bytes(), err
}

// writeTo appends the model to b, as MarshalJSON says. The encoder is one that writes to b.
func (m *apiModel) writeTo(b *bytes.Buffer, enc *json.Encoder) error {
	type plain apiModel
	if err := enc.Encode((*plain)(m)); err != nil {
		return err
	}
	b.Truncate(b.Len() - len("}\n"))
	for _, f := range []struct {
		name    string
		missing bool
	}{
		{"quantization_bits", m.QuantizationBits == 0}, {"required_gpu_memory_mb", m.RequiredGPUMemoryMB == 0}, {"required_ram_mb", m.RequiredRAMMB == 0},
		{"tokenizer_path", m.TokenizerPath == ""}, {"custom_loader_params", len(m.CustomLoaderParams) == 0},
	} {
		if f.missing {
			b.WriteString(`,"` + f.name + `":null`)
		}
	}
	b.WriteByte('}')
	return nil
}

func intParam(c echo.Context, name string, def, hi int) (int, error) {
	const lo = 1
	v := c.QueryParam(name)
	if v == "" {
		return def, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		return 0, badParam(name, fmt.Sprintf("must be a number between %d and %d", lo, hi))
	}
	return n, nil
}

func boolParam(c echo.Context, name string, def bool) (bool, error) {
	switch c.QueryParam(name) {
	case "":
		return def, nil
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, badParam(name, "must be true or false")
}

func (s *Server) listModels(c echo.Context) error {
	limit, err := intParam(c, "limit", store.DefaultLimit, store.MaxLimit)
	if err != nil {
		return err
	}
	q := store.ListQuery{Q: c.QueryParam("q"), Team: c.QueryParam("team"), Teams: teamsOf(c), Limit: limit, After: c.QueryParam("after"),
		Status: registry.Status(c.QueryParam("status")), SourceType: registry.SourceType(c.QueryParam("source_type"))}
	if err := oneOf("status", q.Status, registry.Statuses); err != nil {
		return err
	}
	if err := oneOf("source_type", q.SourceType, registry.SourceTypes); err != nil {
		return err
	}
	page, err := s.Manager.List(c.Request().Context(), q)
	if err != nil {
		return err
	}
	next, err := json.Marshal(page.Next)
	if err != nil {
		return err
	}
	// Put together by hand: encoding/json would check and copy what each model's MarshalJSON gives once more.
	out := buffers.take()
	defer buffers.giveBack(out)
	enc := json.NewEncoder(out)
	out.WriteString(`{"models":[`)
	var m apiModel
	for i := range page.Items {
		if i > 0 {
			out.WriteByte(',')
		}
		m = s.apiModelOf(c, &page.Items[i])
		if err := m.writeTo(out, enc); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, `],"next":%s,"total":%d,"total_capped":%t}`+"\n", next, page.Total, page.Capped)
	return sendWhole(c, http.StatusOK, echo.MIMEApplicationJSON, out.Bytes())
}

func oneOf[S ~string](name string, v S, all []S) error {
	if v == "" {
		return nil
	}
	words := make([]string, len(all))
	for i, a := range all {
		if a == v {
			return nil
		}
		words[i] = string(a)
	}
	return badParam(name, "must be one of "+strings.Join(words, ", "))
}

func readBody(c echo.Context, limit int64) ([]byte, error) {
	return io.ReadAll(http.MaxBytesReader(c.Response(), c.Request().Body, limit))
}

// registerModel is the guide's register_model: 201 for a new model, 200 for a changed one.
func (s *Server) registerModel(c echo.Context) error {
	b, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	m, err := registry.DecodeJSON(b)
	if err != nil {
		return err
	}
	return s.put(c, m, true)
}

func (s *Server) putModel(c echo.Context) error {
	b, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	in, err := registry.DecodeObject(b)
	if err != nil {
		return err
	}
	rec := record(c)
	if id, given := in["model_id"]; given && id != rec.ModelID {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: []registry.FieldError{{Field: "model_id", Msg: "cannot be changed; register a new model and delete this one"}}}
	}
	in["model_id"] = rec.ModelID
	return s.decodeAndPut(c, in)
}

// patchModel changes the fields that are given; null puts one back to its default.
func (s *Server) patchModel(c echo.Context) error {
	b, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	in, err := registry.DecodeObject(b)
	if err != nil {
		return err
	}
	rec := record(c)
	merged := registry.Encode(rec.Model)
	for k, v := range in {
		merged[k] = v
	}
	if merged["model_id"] != rec.ModelID {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: []registry.FieldError{{Field: "model_id", Msg: "cannot be changed; register a new model and delete this one"}}}
	}
	return s.decodeAndPut(c, merged)
}

func (s *Server) decodeAndPut(c echo.Context, in map[string]any) error {
	m, errs := registry.Decode(in)
	if len(errs) > 0 {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: errs}
	}
	return s.put(c, m, false)
}

// put checks both teams of a change (the one it is in, the one it goes to) and stores it.
func (s *Server) put(c echo.Context, m registry.Model, register bool) error {
	ctx := c.Request().Context()
	persist, err := boolParam(c, "persist", true)
	if err != nil {
		return err
	}
	o := manager.PutOptions{Actor: actor(c), Persist: persist}
	if o.IfVersion, err = ifMatch(c); err != nil {
		return err
	}
	o.IfAbsent = c.Request().Header.Get("If-None-Match") == "*"
	rec, created, err := s.register(ctx, m, o, register)
	if err != nil {
		return err
	}
	got, err := s.Manager.Get(ctx, rec.ModelID)
	if err != nil {
		return err
	}
	c.Response().Header().Set("ETag", etag(rec))
	status := http.StatusOK
	if created {
		status = http.StatusCreated
		c.Response().Header().Set("Location", "/api/v1/models/"+escape(rec.ModelID))
	}
	return c.JSON(status, s.apiModelOf(c, &got))
}

// register applies the policy to a registration or an edit, stores it and writes the audit. Pages and API share it.
func (s *Server) register(ctx context.Context, m registry.Model, o manager.PutOptions, mayBeNew bool) (rec registry.Record, created bool, err error) {
	id := auth.FromContext(ctx)
	action := auth.ModelRegister
	defer func() {
		if code := registry.CodeOf(err); err != nil && code != registry.CodeInvalid {
			s.Auth.Audit(ctx, action, "model:"+m.ModelID, err, "")
		}
	}()
	old, err := s.Store.Model(ctx, m.ModelID)
	switch {
	case err == nil && mayBeNew && !auth.Sees(id, old.Team):
		return rec, false, registry.Errorf(registry.CodeConflict, "The id %s is taken by a model that you may not see. Choose another one.", m.ModelID)
	case err == nil:
		action = auth.ModelEdit
		if err := auth.Allowed(id, auth.ModelEdit, old.Team); err != nil {
			return rec, false, err
		}
	case registry.CodeOf(err) != registry.CodeNotFound:
		return rec, false, err
	}
	if err != nil || old.Team != m.Team {
		if err := auth.Allowed(id, auth.ModelRegister, m.Team); err != nil {
			return rec, false, err
		}
		if err := s.knownTeam(ctx, m.Team); err != nil {
			return rec, false, err
		}
	}
	entry := s.Auth.Entry(ctx, action, "model:"+m.ModelID, nil, "")
	o.Audit, o.Admin = &entry, id.Admin
	return s.Manager.Register(ctx, m, o)
}

func (s *Server) knownTeam(ctx context.Context, team string) error {
	teams, err := s.Store.ListTeams(ctx)
	if err != nil {
		return err
	}
	for _, t := range teams {
		if t.Name == team {
			return nil
		}
	}
	return &registry.Error{Code: registry.CodeInvalid, Msg: "The model is not valid", Fields: []registry.FieldError{{Field: "team", Msg: fmt.Sprintf("names no team: there is no %q", team)}}}
}

func etag(r registry.Record) string { return `"` + strconv.FormatInt(r.Version, 10) + `"` }

// ifMatch reads If-Match: 0 when it is not given or *.
func ifMatch(c echo.Context) (int64, error) {
	v := strings.TrimSpace(c.Request().Header.Get("If-Match"))
	if v == "" || v == "*" {
		return 0, nil
	}
	n, err := strconv.ParseInt(strings.Trim(strings.TrimPrefix(v, "W/"), `"`), 10, 64)
	if err != nil || n <= 0 {
		return 0, badParam("If-Match", "must be the ETag of the model as it was read")
	}
	return n, nil
}

// getModel is the guide's get_model_configuration.
func (s *Server) getModel(c echo.Context) error {
	got, err := s.Manager.Get(c.Request().Context(), record(c).ModelID)
	if err != nil {
		return err
	}
	tag := etag(got.Record)
	c.Response().Header().Set("ETag", tag)
	m := s.apiModelOf(c, &got)
	m.Loaded = loadedOf(got.Runtime)
	if got.Runtime.State == registry.RuntimeReady {
		m.Activity = got.Runtime.Activity
	}
	return c.JSON(http.StatusOK, m)
}

func (s *Server) deleteModel(c echo.Context) error {
	v, err := ifMatch(c)
	if err != nil {
		return err
	}
	id := record(c).ModelID
	err = s.Manager.Delete(c.Request().Context(), id, v, actor(c))
	s.Auth.Audit(c.Request().Context(), auth.ModelDelete, "model:"+id, err, "")
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
