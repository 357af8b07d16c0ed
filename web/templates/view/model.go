package view

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ModelRow is one line of a list of models.
type ModelRow struct {
	ID       string
	Sub      string // source · format · quantisation
	Team     string
	Status   registry.Status
	Word     Status
	Device   string // GPU 0, CPU, remote; "" when not loaded
	Memory   int64  // bytes: measured when it is loaded, else predicted or given; 0 unknown
	Share    float64
	LastUsed string // now, 4 min; None
	Requests string // per minute; None when not counted
	Pinned   bool
	CanLoad  bool
	// CanEnd offers Unload, or Cancel while it is loading.
	CanEnd bool
}

// RowInput is what a row is made of.
type RowInput struct {
	Record   registry.Record
	Runtime  registry.Runtime
	Percent  int     // of the load or download; 0 unknown
	Place    int     // in the queue, from 1; 0 unknown
	Largest  int64   // bytes of the largest device, for the thin bar; 0 for none
	Requests float64 // per minute; negative when not counted
	Can      Can
	Now      time.Time
}

// RowOf makes a row.
func RowOf(in RowInput) ModelRow {
	m, rt := in.Record, in.Runtime
	st := registry.DeriveStatus(m.Registration, rt.Artifact, rt.State)
	row := ModelRow{
		ID: m.ModelID, Sub: SubLine(m.Model), Team: m.Team, Status: st, Word: StatusOf(st, in.Percent, in.Place),
		Memory: MemoryOf(m.Model, rt), LastUsed: None, Requests: None, Pinned: m.Pinned,
	}
	if rt.State.HoldsMemory() {
		row.Device = DeviceName(rt.Device)
		if st == registry.StatusSleeping {
			row.Device = "RAM"
		}
	}
	if in.Largest > 0 {
		row.Share = min(float64(row.Memory)/float64(in.Largest)*100, 100)
	}
	if !rt.LastUsedAt.IsZero() {
		row.LastUsed = strings.TrimSuffix(Ago(rt.LastUsedAt, in.Now), " ago")
	}
	if in.Requests >= 0 && st == registry.StatusReady {
		row.Requests = Count(int64(in.Requests + 0.5))
	}
	if in.Can.Load {
		row.CanLoad, row.CanEnd = loadable(st), endable(st)
	}
	return row
}

func loadable(s registry.Status) bool {
	return s == registry.StatusNotLoaded || s == registry.StatusFailed || s == registry.StatusSleeping
}

func endable(s registry.Status) bool {
	switch s {
	case registry.StatusReady, registry.StatusSleeping, registry.StatusLoading, registry.StatusFetching, registry.StatusQueued, registry.StatusRetrying:
		return true
	case registry.StatusNotLoaded, registry.StatusFailed, registry.StatusUnloading, registry.StatusPending, registry.StatusArchived:
	}
	return false
}

// Coming reports whether the model is on its way to being loaded; then ending it is called Cancel.
func Coming(s registry.Status) bool {
	switch s {
	case registry.StatusLoading, registry.StatusFetching, registry.StatusQueued, registry.StatusRetrying:
		return true
	case registry.StatusNotLoaded, registry.StatusReady, registry.StatusSleeping, registry.StatusUnloading, registry.StatusFailed, registry.StatusPending, registry.StatusArchived:
	}
	return false
}

// SubLine is the line below a model's name.
func SubLine(m registry.Model) string {
	parts := []string{SourceName(m.SourceType)}
	if m.SourceType != registry.SourceExternal {
		parts = append(parts, FormatName(m.ModelFormat))
	}
	if m.QuantizationBits > 0 {
		parts = append(parts, fmt.Sprintf("%d-bit", m.QuantizationBits))
	}
	return strings.Join(parts, " · ")
}

// MemoryOf is the best known figure for what a model takes, in bytes: measured, then given, then predicted.
func MemoryOf(m registry.Model, rt registry.Runtime) int64 {
	mem := rt.Memory
	if strings.HasPrefix(rt.Device, "cuda") {
		return firstOf(mem.MeasuredGPU, m.RequiredGPUMemoryMB<<20, mem.PredictedGPU)
	}
	if rt.Device == "cpu" {
		return firstOf(mem.MeasuredRAM, m.RequiredRAMMB<<20, mem.PredictedRAM)
	}
	return firstOf(mem.MeasuredGPU, mem.MeasuredRAM, m.RequiredGPUMemoryMB<<20, m.RequiredRAMMB<<20, mem.PredictedGPU, mem.PredictedRAM)
}

func firstOf(ns ...int64) int64 {
	for _, n := range ns {
		if n > 0 {
			return n
		}
	}
	return 0
}

// ModelPage is the page of one model.
type ModelPage struct {
	Page
	Can       Can
	Record    registry.Record // redacted
	Runtime   registry.Runtime
	Status    registry.Status
	Place     int            // in the queue
	Operation *Operation     // under way; nil when none is
	Plan      *registry.Plan // what a load would do now; nil while loaded or loading
	Facts     registry.Facts // from the headers; zero when not known yet
	Files     Files
	Log       []string // the engine's last lines
	History   []Operation
	BaseURL   string // of this server, without /v1
	Requests  int    // being answered now
	Largest   int64  // bytes of the largest device
	Engines   []registry.EngineVerdict
	CanSleep  bool                    // it is loaded and can be put to sleep
	WhyAwake  string                  // why it cannot, as a sentence
	Service   *registry.ServiceHealth // of one that runs elsewhere and is loaded
}

// ServiceStatus is whether the service elsewhere answers.
func (p ModelPage) ServiceStatus() Status {
	if p.Service.AwaySince.IsZero() {
		return Status{"ready", "Answers"}
	}
	return Status{"failed", "Away since " + Clock(p.Service.AwaySince, p.Now)}
}

// ServiceRequests counts what the service was asked by users: "128 requests, 2 failed".
func (p ModelPage) ServiceRequests() string {
	s := Plural(int(p.Service.Requests), "request", "requests")
	if n := p.Service.Errors; n > 0 {
		s += fmt.Sprintf(", %s failed", Count(n))
	}
	return s
}

// ServiceLatency is how long an answer takes to begin, "" when nobody asked yet.
func (p ModelPage) ServiceLatency() string {
	if p.Service.LatencyMS <= 0 {
		return ""
	}
	return Duration(time.Duration(p.Service.LatencyMS * float64(time.Millisecond)))
}

// Row is the model's line in a list.
func (p ModelPage) Row() ModelRow {
	percent := 0
	if p.Operation != nil {
		percent = p.Operation.Percent()
	} else if p.Files.Fetch != nil {
		percent = p.Files.Fetch.Percent()
	}
	return RowOf(RowInput{Record: p.Record, Runtime: p.Runtime, Percent: percent, Place: p.Place, Largest: p.Largest, Requests: -1, Can: p.Can, Now: p.Now})
}

// ID is the model_id.
func (p ModelPage) ID() string { return p.Record.ModelID }

// Usable reports whether requests may reach the model at all.
func (p ModelPage) Usable() bool {
	return p.Status != registry.StatusPending && p.Status != registry.StatusArchived
}

// FactList is what is known about the model, as names and values.
func (p ModelPage) FactList() []Fact {
	m, f := p.Record.Model, p.Facts
	var out []Fact
	add := func(name, value, note string) {
		if value != "" {
			out = append(out, Fact{Name: name, Value: value, Note: note})
		}
	}
	src := m.SourcePath
	if m.SourceType == registry.SourceHuggingFace {
		src += "@" + m.Revision
	}
	out = append(out, Fact{Name: "Source", Value: SourceName(m.SourceType)}, Fact{Name: "Path", Value: src, Mono: true})
	if f.Name != "" {
		add("Called", f.Name, "")
	}
	add("Format", strings.TrimSpace(FormatName(m.ModelFormat)), f.Quantization)
	if p.Runtime.Engine != "" {
		out = append(out, Fact{Name: "Engine", Value: EngineName(p.Runtime.Engine), Note: p.Runtime.EngineVersion, URL: EngineURL(p.Runtime.Engine)})
	} else if p.Plan != nil && p.Plan.Engine != "" {
		out = append(out, Fact{Name: "Engine", Value: EngineName(p.Plan.Engine), URL: EngineURL(p.Plan.Engine)})
	} else {
		add("Engine", EngineName(m.Engine), "")
	}
	add("Architecture", f.Architecture, "")
	if f.Parameters > 0 {
		add("Parameters", Big(f.Parameters), f.DType)
	}
	if f.WeightBytes > 0 {
		add("Weights", Bytes(f.WeightBytes), "")
	}
	context := ""
	if e := p.Runtime.Endpoint; e != nil && e.ContextLength > 0 {
		context = Count(int64(e.ContextLength))
	} else if m.ContextLength > 0 {
		context = Count(int64(m.ContextLength))
	} else if p.Plan != nil && p.Plan.Needs.Context > 0 {
		context = Count(int64(p.Plan.Needs.Context))
	}
	trained := ""
	if f.ContextLength > 0 {
		trained = "trained for " + Count(int64(f.ContextLength))
	}
	if context == "" && f.ContextLength > 0 {
		context, trained = Count(int64(f.ContextLength)), ""
	}
	add("Context", context, trained)
	if m.QuantizationBits > 0 {
		add("Quantisation", fmt.Sprintf("%d-bit", m.QuantizationBits), "at load")
	}
	add("Device", OptionName("device_preference", string(m.DevicePreference)), "")
	add("Team", m.Team, "")
	if m.IdleTimeout > 0 {
		add("When idle", "unload after "+Duration(time.Duration(m.IdleTimeout)), "")
	}
	if m.Pinned {
		add("Pinned", "stays loaded", "never evicted")
	}
	if m.TrustRemoteCode {
		add("Remote code", "trusted", "runs Python of the model")
	}
	add("Licence", f.Licence, "")
	if len(m.Tags) > 0 {
		add("Tags", strings.Join(m.Tags, ", "), "")
	}
	if !p.Record.Persist {
		add("Kept", "until the server stops", "")
	}
	add("Registered", Ago(p.Record.CreatedAt, p.Now), nonEmpty("by ", p.Record.CreatedBy))
	return out
}

func nonEmpty(prefix, s string) string {
	if s == "" {
		return ""
	}
	return prefix + s
}

// Fact is a name, a value and a note.
type Fact struct {
	Name, Value, Note string
	Mono              bool
	URL               string // where the value leads; "" nowhere
}

// MemoryLine compares what was predicted with what was measured, in words, and beside it what the engine says of itself, which
// is all that is known of a model in a server that somebody else runs; "" when nothing is known.
func (p ModelPage) MemoryLine() string {
	mem := p.Runtime.Memory
	predicted, measured := mem.PredictedRAM, mem.MeasuredRAM
	if strings.HasPrefix(p.Runtime.Device, "cuda") {
		predicted, measured = mem.PredictedGPU, mem.MeasuredGPU
	}
	said := joinWith([]string{some(mem.ReportedGPU, " on GPUs"), some(mem.ReportedRAM, " in main memory")}, " and ")
	switch {
	case measured == 0 && said == "":
		return ""
	case measured == 0:
		return "Takes " + said + " by the engine's own count."
	case said != "":
		said = " By the engine's own count: " + said + "."
	}
	line := "Takes " + Bytes(measured)
	if predicted > 0 {
		diff := float64(measured-predicted) / float64(predicted) * 100
		switch {
		case diff > 0.5:
			line += fmt.Sprintf(", %.0f%% more than the %s predicted", diff, Bytes(predicted))
		case diff < -0.5:
			line += fmt.Sprintf(", %.0f%% less than the %s predicted", -diff, Bytes(predicted))
		default:
			line += ", as predicted"
		}
	}
	return line + "." + said
}

// some writes bytes with what follows; "" when there are none.
func some(n int64, after string) string {
	if n <= 0 {
		return ""
	}
	return Bytes(n) + after
}

// joinWith joins the texts that are not empty.
func joinWith(list []string, by string) string {
	return strings.Join(slices.DeleteFunc(list, func(s string) bool { return s == "" }), by)
}

// PlanClass is the colour of a plan's box.
func PlanClass(v registry.Verdict) string {
	switch v {
	case registry.VerdictFits, registry.VerdictLoaded:
		return "fits"
	case registry.VerdictEvict, registry.VerdictWaits:
		return "evict"
	case registry.VerdictNever:
		return "never"
	}
	return "never"
}

// NeedsLine writes what a plan needs and what is free: "Needs 26.1 GiB (weights 24.6 GiB, cache at 8,192 tokens
// 1 GiB, engine 512 MiB). Free on GPU 0: 18.4 GiB."
func NeedsLine(p registry.Plan) string {
	n := p.Needs
	if n.Bytes() == 0 {
		return ""
	}
	line := "Needs " + Bytes(n.Bytes())
	var parts []string
	if n.Weights > 0 {
		parts = append(parts, "weights "+Bytes(n.Weights))
	}
	if n.KVCache > 0 {
		s := "cache "
		if n.Context > 0 {
			s = "cache for " + Count(int64(n.Context)) + " tokens "
		}
		parts = append(parts, s+Bytes(n.KVCache))
	}
	if n.Overhead > 0 {
		parts = append(parts, "engine "+Bytes(n.Overhead))
	}
	switch {
	case n.Given > 0 && n.Estimated > 0:
		line += fmt.Sprintf(" as given; we would estimate %s", Bytes(n.Estimated))
	case n.Given > 0:
		line += " as given"
	case len(parts) > 0:
		line += " (" + strings.Join(parts, ", ") + ")"
	}
	line += "."
	if p.Device != "" {
		line += fmt.Sprintf(" Free on %s: %s.", DeviceName(p.Device), Bytes(max(p.Free, 0)))
	}
	return line
}

// PlanWhy says why this engine and this device.
func PlanWhy(p registry.Plan) string {
	var parts []string
	if p.EngineWhy != "" {
		parts = append(parts, EngineName(p.Engine)+": "+strings.TrimSuffix(p.EngineWhy, ".")+".")
	}
	if p.DeviceWhy != "" {
		parts = append(parts, strings.TrimSuffix(p.DeviceWhy, ".")+".")
	}
	return strings.Join(parts, " ")
}

// HolderNote says what a holder that is to leave gives back, and for how long nobody used it.
func HolderNote(h registry.Holder) string {
	s := Bytes(h.Bytes)
	if h.IdleFor > 0 {
		s += ", idle for " + Duration(time.Duration(h.IdleFor))
	}
	return s
}

// HolderSays says what a holder holds and whether it could leave, unless nobody's leaving would help.
func HolderSays(h registry.Holder, s registry.Shortage) string {
	says := "holds "
	if h.Promised {
		says = "is promised "
	}
	says += Bytes(h.Bytes)
	switch {
	case h.ModelID == "" || s.Needed > s.Total: // what is larger than the device fits after no eviction
	case h.Evictable:
		says += ", idle, could leave"
	default:
		says += ", cannot be evicted"
	}
	return says
}

// FailureTitle is the first sentence about a failed load.
func FailureTitle(f registry.Failure) string {
	if w := FailureWord(f.Kind); w != "" {
		return "It could not be loaded: " + w + "."
	}
	return "It could not be loaded."
}

// LogTitle stands above the log's tail of a failure.
func LogTitle(f registry.Failure) string {
	s := "The engine's last lines"
	if f.ExitCode != 0 {
		s += fmt.Sprintf(", exit code %d", f.ExitCode)
	}
	if f.Signal != "" {
		s += ", ended by " + f.Signal
	}
	return s
}

// InMemory is what an engine says of the weights that it holds: "135 M parameters, Q4_1, 92 MiB, on cpu". "" when it says
// nothing.
func InMemory(e registry.Endpoint) string {
	var parts []string
	if e.Parameters > 0 {
		parts = append(parts, Big(e.Parameters)+" parameters")
	}
	if e.DType != "" {
		parts = append(parts, e.DType)
	}
	if e.Bytes > 0 {
		parts = append(parts, Bytes(e.Bytes))
	}
	if e.Device != "" {
		parts = append(parts, "on "+e.Device)
	}
	return strings.Join(parts, ", ")
}
