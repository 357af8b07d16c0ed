package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/manager"
	"github.com/industriverse/llmmodelmanager/internal/manifest"
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
		{"POST", p + "/models/:id/instance", auth.ModelUse, s.modelInstance},
		{"GET", p + "/models/:id/logs", auth.LogsRead, s.modelLogs},
		{"POST", p + "/models/:id/registration", auth.RegistrationApprove, s.setRegistration},
		{"POST", p + "/plan", auth.ModelList, s.planUnregistered},
		{"GET", p + "/operations", auth.ModelList, s.listOperations},
		{"GET", p + "/operations/:op", auth.OperationRead, s.getOperation},
		{"DELETE", p + "/operations/:op", auth.OperationCancel, s.cancelOperation},
		{"GET", p + "/events", auth.EventsRead, s.streamEvents},
		{"GET", p + "/resources", auth.ResourcesRead, s.getResources},
		{"GET", p + "/engines", auth.EnginesRead, s.listEngines},
		{"POST", p + "/engines/:name/install", auth.EngineInstall, s.installEngine},
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
	Percent        int               `json:"percent,omitempty"`
	RequestsPerMin int               `json:"requests_per_minute"`
	Memory         *registry.Memory  `json:"memory,omitempty"`
	Failure        *registry.Failure `json:"failure,omitempty"`
	OperationID    string            `json:"operation_id,omitempty"`
	ReadyAt        time.Time         `json:"ready_at,omitzero"`
	LastUsedAt     time.Time         `json:"last_used_at,omitzero"`
}

// apiModelOf shows a model to the caller: without secrets, and without log lines for who may not read logs.
func (s *Server) apiModelOf(c echo.Context, l manager.Listed) apiModel {
	m := apiModel{
		Record: l.Record, Status: l.Status, Device: l.Device, Engine: l.Record.Engine, LoadedEngine: l.Runtime.Engine, Percent: l.Percent, RequestsPerMin: l.PerMinute,
		Failure: l.Runtime.Failure, OperationID: l.Runtime.OperationID, LastUsedAt: l.Runtime.LastUsedAt,
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
	type plain apiModel
	b, err := json.Marshal(plain(m))
	if err != nil {
		return nil, err
	}
	var nulls []string
	for name, missing := range map[string]bool{
		"quantization_bits": m.QuantizationBits == 0, "required_gpu_memory_mb": m.RequiredGPUMemoryMB == 0, "required_ram_mb": m.RequiredRAMMB == 0,
		"tokenizer_path": m.TokenizerPath == "", "custom_loader_params": len(m.CustomLoaderParams) == 0,
	} {
		if missing {
			nulls = append(nulls, strconv.Quote(name)+":null")
		}
	}
	if len(nulls) == 0 {
		return b, nil
	}
	return append(append(b[:len(b)-1], ','), append([]byte(strings.Join(nulls, ",")), '}')...), nil
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
	items, next, total, err := s.Manager.List(c.Request().Context(), q)
	if err != nil {
		return err
	}
	out := make([]apiModel, len(items))
	for i, l := range items {
		out[i] = s.apiModelOf(c, l)
	}
	return c.JSON(http.StatusOK, map[string]any{"models": out, "next": next, "total": total})
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
	return c.JSON(status, s.apiModelOf(c, got))
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
	o.Audit = &entry
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
	return c.JSON(http.StatusOK, s.apiModelOf(c, got))
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

func (s *Server) planModel(c echo.Context) error {
	device := registry.Device(c.QueryParam("device"))
	if err := oneOf("device", device, registry.Devices); err != nil {
		return err
	}
	p, err := s.Manager.Plan(c.Request().Context(), record(c).ModelID, device)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visiblePlan(c, p))
}

// visiblePlan hides the names of other teams' models.
func (s *Server) visiblePlan(c echo.Context, p registry.Plan) registry.Plan {
	hidden := false
	for _, h := range p.Evict {
		if _, err := s.seen(c.Request().Context(), h.ModelID); err != nil {
			p.Sentence, hidden = strings.ReplaceAll(p.Sentence, h.ModelID, "a model of another team"), true
		}
	}
	if hidden {
		p.Evict = s.visibleHolders(c, p.Evict)
	}
	if p.Shortage != nil {
		sh := *p.Shortage
		sh.Holders = s.visibleHolders(c, sh.Holders)
		p.Shortage = &sh
	}
	return p
}

// planUnregistered plans for a configuration that need not be registered: what the form shows while it is filled in.
func (s *Server) planUnregistered(c echo.Context) error {
	b, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	m, err := registry.DecodeJSON(b)
	if err != nil {
		return err
	}
	if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.ModelRegister, m.Team); err != nil {
		return err
	}
	p, snap, err := s.Manager.PlanModel(c.Request().Context(), m)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"plan": s.visiblePlan(c, p), "facts": snap.Facts, "files": len(snap.Files), "bytes": snap.Bytes})
}

// loadBody is the body of a load; an empty one means all defaults.
type loadBody struct {
	ForceReload bool            `json:"force_reload"`
	Device      registry.Device `json:"device"`
	Override    bool            `json:"override_resources"`
	Evict       bool            `json:"evict"`
}

func decodeLoad(c echo.Context) (b loadBody, err error) {
	raw, err := readBody(c, maxModelBody)
	if err != nil || strings.TrimSpace(string(raw)) == "" {
		return b, err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return b, err
	}
	var fields []registry.FieldError
	for name, v := range in {
		switch name {
		case "force_reload", "override_resources", "evict":
			on, ok := v.(bool)
			if !ok && v != nil {
				fields = append(fields, registry.FieldError{Field: name, Msg: "must be true or false"})
			}
			switch name {
			case "force_reload":
				b.ForceReload = on
			case "override_resources":
				b.Override = on
			default:
				b.Evict = on
			}
		case "device":
			d, ok := v.(string)
			if (!ok && v != nil) || oneOf("device", registry.Device(d), registry.Devices) != nil {
				fields = append(fields, registry.FieldError{Field: name, Msg: "must be auto, cuda or cpu"})
			}
			b.Device = registry.Device(d)
		default:
			fields = append(fields, registry.FieldError{Field: name, Msg: "is not a field of a load request; there are force_reload, device, override_resources and evict"})
		}
	}
	if len(fields) > 0 {
		return b, &registry.Error{Code: registry.CodeInvalid, Msg: "The load request is not valid", Fields: fields}
	}
	return b, nil
}

// load applies the policy to a load, begins it and writes the audit. Pages and API share it.
func (s *Server) load(ctx context.Context, rec registry.Record, o manager.LoadOptions) (registry.Operation, error) {
	action, detail := auth.ModelLoad, ""
	if o.Override {
		action, detail = auth.ModelOverride, "despite what the memory check says"
		if err := auth.Allowed(auth.FromContext(ctx), action, rec.Team); err != nil {
			s.Auth.Audit(ctx, action, "model:"+rec.ModelID, err, detail)
			return registry.Operation{}, err
		}
	}
	op, err := s.Manager.Load(ctx, rec.ModelID, o)
	s.Auth.Audit(ctx, action, "model:"+rec.ModelID, err, detail)
	return op, err
}

func (s *Server) loadModel(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	b, err := decodeLoad(c)
	if err != nil {
		return err
	}
	op, err := s.load(c.Request().Context(), record(c), manager.LoadOptions{ForceReload: b.ForceReload, Device: b.Device, Override: b.Override, Evict: b.Evict, Actor: actor(c), Cause: "asked for over the API"})
	if err != nil {
		return err
	}
	op, err = s.await(c, op, wait)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/operations/"+op.ID)
	if !op.State.Final() || wait == 0 {
		return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
	}
	if err := outcome(c, op); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

// await waits for an operation, at most for wait.
func (s *Server) await(c echo.Context, op registry.Operation, wait time.Duration) (registry.Operation, error) {
	if wait <= 0 || op.State.Final() {
		return op, nil
	}
	ctx, cancel := context.WithTimeout(c.Request().Context(), wait)
	defer cancel()
	return s.Manager.Await(ctx, op.ID)
}

// outcome is the error that an ended operation ended with.
func outcome(c echo.Context, op registry.Operation) error {
	c.Set("operation", op.ID)
	switch op.State {
	case registry.OperationFailed:
		return op.Error.AsError()
	case registry.OperationCancelled:
		return registry.Errorf(registry.CodeUnavailable, "The load was cancelled. %s", op.Outcome)
	case registry.OperationQueued, registry.OperationRunning, registry.OperationSucceeded:
	}
	return nil
}

// unloadModel is the guide's unload_model: true when the model was loaded and is not any more, false when it was not.
func (s *Server) unloadModel(c echo.Context) error {
	wait, err := waitFor(c, time.Minute)
	if err != nil {
		return err
	}
	op, unloaded, err := s.unload(c.Request().Context(), record(c).ModelID, "asked for over the API")
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	body := map[string]any{"unloaded": unloaded, "operation": s.visibleOperation(c, op)}
	if !op.State.Final() {
		return c.JSON(http.StatusAccepted, body)
	}
	if op.Kind == registry.OperationUnload {
		if err := outcome(c, op); err != nil {
			return err
		}
	}
	return c.JSON(http.StatusOK, body)
}

func (s *Server) unload(ctx context.Context, id, cause string) (registry.Operation, bool, error) {
	op, unloaded, err := s.Manager.Unload(ctx, id, manager.UnloadOptions{Actor: auth.FromContext(ctx).Actor(), Cause: cause})
	s.Auth.Audit(ctx, auth.ModelUnload, "model:"+id, err, "")
	return op, unloaded, err
}

// modelInstance is the guide's get_model_instance: it loads the model if need be.
func (s *Server) modelInstance(c echo.Context) error {
	wait, err := waitFor(c, time.Minute)
	if err != nil {
		return err
	}
	ctx, rec := c.Request().Context(), record(c)
	info, err := s.Manager.Instance(ctx, rec.ModelID)
	if err == nil || registry.CodeOf(err) != registry.CodeBadState {
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, info)
	}
	if err := auth.Allowed(auth.FromContext(ctx), auth.ModelLoad, rec.Team); err != nil {
		return err
	}
	op, err := s.load(ctx, rec, manager.LoadOptions{Actor: actor(c), Cause: "its instance was asked for over the API"})
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	if !op.State.Final() {
		c.Response().Header().Set("Location", "/api/v1/operations/"+op.ID)
		return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
	}
	if err := outcome(c, op); err != nil {
		return err
	}
	if info, err = s.Manager.Instance(ctx, rec.ModelID); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, info)
}

func (s *Server) modelLogs(c echo.Context) error {
	n, err := intParam(c, "lines", 200, 10_000)
	if err != nil {
		return err
	}
	path, err := s.Manager.LogPath(c.Request().Context(), record(c).ModelID)
	if err != nil {
		return err
	}
	lines := s.Manager.ForPeople(process.Tail(path, 0, n))
	return c.String(http.StatusOK, strings.Join(lines, "\n")+"\n")
}

func (s *Server) setRegistration(c echo.Context) error {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	in, err := registry.DecodeObject(raw)
	if err != nil {
		return err
	}
	do, _ := in["action"].(string)
	if len(in) != 1 || (do != "approve" && do != "deprecate" && do != "archive" && do != "restore") {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid", Fields: []registry.FieldError{{Field: "action", Msg: "must be approve, deprecate, archive or restore"}}}
	}
	rec, err := s.Manager.SetRegistration(c.Request().Context(), record(c).ModelID, registry.Trigger(do), actor(c))
	s.Auth.Audit(c.Request().Context(), auth.RegistrationApprove, "model:"+record(c).ModelID, err, do)
	if err != nil {
		return err
	}
	got, err := s.Manager.Get(c.Request().Context(), rec.ModelID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.apiModelOf(c, got))
}

// mayOperate checks an operation's team: that of its model; those of engines and of models that are gone are for
// everybody who may see the engines, and for admins.
func (s *Server) mayOperate(ctx context.Context, op registry.Operation, a auth.Action) error {
	id := auth.FromContext(ctx)
	if op.Kind == registry.OperationInstall || op.Kind == registry.OperationImport {
		if a == auth.OperationCancel {
			a = auth.EngineInstall
		} else {
			a = auth.EnginesRead
		}
		return auth.Allowed(id, a, "")
	}
	rec, err := s.Store.Model(ctx, op.Subject)
	if registry.CodeOf(err) == registry.CodeNotFound && id.Admin {
		return nil
	}
	if err != nil || !auth.Sees(id, rec.Team) {
		return registry.Errorf(registry.CodeNotFound, "There is no operation %s", op.ID)
	}
	return auth.Allowed(id, a, rec.Team)
}

func (s *Server) listOperations(c echo.Context) error {
	limit, err := intParam(c, "limit", store.DefaultLimit, store.MaxLimit)
	if err != nil {
		return err
	}
	q := store.OperationQuery{Subject: c.QueryParam("model"), Kind: registry.OperationKind(c.QueryParam("kind")), State: registry.OperationState(c.QueryParam("state")), After: c.QueryParam("after")}
	ops, next, err := s.operations(c, q, limit, nil)
	if err != nil {
		return err
	}
	if ops == nil {
		ops = []registry.Operation{}
	}
	return c.JSON(http.StatusOK, map[string]any{"operations": ops, "next": next})
}

func (s *Server) getOperation(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	op, err := s.Manager.Operation(c.Request().Context(), c.Param("op"))
	if err != nil {
		return err
	}
	if err := s.mayOperate(c.Request().Context(), op, auth.OperationRead); err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

func (s *Server) cancelOperation(c echo.Context) error {
	ctx := c.Request().Context()
	op, err := s.Manager.Operation(ctx, c.Param("op"))
	if err != nil {
		return err
	}
	if err := s.mayOperate(ctx, op, auth.OperationCancel); err != nil {
		return err
	}
	op, err = s.Manager.CancelOperation(ctx, op.ID, actor(c))
	s.Auth.Audit(ctx, auth.OperationCancel, "operation:"+c.Param("op"), err, string(op.Kind)+" of "+op.Subject)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.visibleOperation(c, op))
}

func (s *Server) getResources(c echo.Context) error {
	return c.JSON(http.StatusOK, s.visibleResources(c.Request().Context()))
}

// visibleResources hides the names of other teams' models in the reservations; the bytes stay.
func (s *Server) visibleResources(ctx context.Context) registry.Resources {
	res := s.Manager.Resources()
	id := auth.FromContext(ctx)
	for i := range res.Reservations {
		if r := &res.Reservations[i]; !auth.Sees(id, r.Team) {
			r.ModelID, r.Team, r.InstanceID, r.PID = "a model of another team", "", "", 0
		}
	}
	return res
}

func (s *Server) listEngines(c echo.Context) error {
	return c.JSON(http.StatusOK, map[string]any{"engines": s.Manager.Engines(c.Request().Context())})
}

func (s *Server) installEngine(c echo.Context) error {
	wait, err := waitFor(c, 0)
	if err != nil {
		return err
	}
	op, err := s.Manager.InstallEngine(c.Request().Context(), c.Param("name"), actor(c))
	s.Auth.Audit(c.Request().Context(), auth.EngineInstall, "engine:"+c.Param("name"), err, "")
	if err != nil {
		return err
	}
	if op, err = s.await(c, op, wait); err != nil {
		return err
	}
	if op.State.Final() && wait > 0 {
		if err := outcome(c, op); err != nil {
			return err
		}
		return c.JSON(http.StatusOK, s.visibleOperation(c, op))
	}
	return c.JSON(http.StatusAccepted, s.visibleOperation(c, op))
}

func (s *Server) importManifest(c echo.Context) error {
	dry, err := boolParam(c, "dry_run", false)
	if err != nil {
		return err
	}
	persist, err := boolParam(c, "persist", true)
	if err != nil {
		return err
	}
	b, err := readBody(c, maxImportBody)
	if err != nil {
		return err
	}
	res, err := s.applyManifest(c.Request().Context(), b, persist, dry)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, res)
}

// applyManifest imports a models file with the caller's rights, entry by entry. Pages and API share it.
func (s *Server) applyManifest(ctx context.Context, b []byte, persist, dry bool) (manager.ImportResult, error) {
	doc, err := manifest.Parse(b)
	if err != nil {
		return manager.ImportResult{}, err
	}
	id := auth.FromContext(ctx)
	kept := doc.Entries[:0:0]
	for _, e := range doc.Entries {
		if id.Admin { // may edit every model: no need to look at ten thousand of them
			kept = append(kept, e)
			continue
		}
		if old, err := s.Store.Model(ctx, e.Model.ModelID); err == nil {
			if err := auth.Allowed(id, auth.ModelEdit, old.Team); err != nil {
				doc.Issues = append(doc.Issues, registry.FieldError{Field: e.Model.ModelID, Msg: err.Error(), Line: e.Line, Column: e.Column})
				continue
			}
		}
		kept = append(kept, e)
	}
	doc.Entries = kept
	known := map[string]error{}
	res, err := s.Manager.Import(ctx, doc, manager.PutOptions{Actor: id.Actor(), Persist: persist}, dry, func(team string) error {
		if err := auth.Allowed(id, auth.ModelRegister, team); err != nil {
			return err
		}
		if _, asked := known[team]; !asked {
			known[team] = s.knownTeam(ctx, team)
		}
		var e *registry.Error
		if errors.As(known[team], &e) && len(e.Fields) > 0 {
			return errors.New("team " + e.Fields[0].Msg)
		}
		return known[team]
	})
	if !dry {
		s.Auth.Audit(ctx, auth.ManifestImport, "manifest", err, fmt.Sprintf("%d added, %d changed, %d left out", len(res.Added), len(res.Changed), len(res.Issues)))
	}
	return res, err
}

func (s *Server) exportManifest(c echo.Context) error {
	c.Response().Header().Set(echo.HeaderContentType, "application/yaml; charset=utf-8")
	c.Response().Header().Set(echo.HeaderContentDisposition, `attachment; filename="models.yaml"`)
	return s.Manager.Export(c.Request().Context(), c.Response(), teamsOf(c))
}

func (s *Server) manifestStatus(c echo.Context) error {
	st := s.visibleManifest(c)
	if st.Path == "" {
		return registry.Errorf(registry.CodeNotFound, "The server was started without a models file")
	}
	return c.JSON(http.StatusOK, st)
}
