package manager

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// PlanInput is all that the planner looks at. It is a value: the same input gives the same plan, however often and
// from wherever it is asked.
type PlanInput struct {
	Model   registry.Model
	Device  registry.Device // what is asked for now: the model's preference, or that of the load request
	Engine  string
	Why     string            // why this engine
	Builds  []registry.Device // what the engine's build can use
	NoCUDA  string            // why that is without CUDA, for this model; often ""
	NeedGPU registry.Footprint
	NeedCPU registry.Footprint
	// Elsewhere: the engine runs on another machine.
	Elsewhere bool

	Sample       registry.Sample
	Reservations []registry.Reservation // of all others: those of the model itself are left out by the caller
	Now          time.Time
}

// remote is the device of what runs on another machine.
const remote = "remote"

// room is one device as the planner sees it. All in bytes.
type room struct {
	device    string
	gpu       int // NVML index, -1 for the host
	total     int64
	available int64 // neither held nor promised; negative where more is promised than there is, after an override
	evictable int64 // held by or promised to instances that may be evicted
	foreign   int64 // held by processes that are not ours
	holders   []registry.Holder
}

// MakePlan answers what would happen if the model were loaded now. It is pure.
//
// What is available on a device is the smaller of two views, so that a sample that is a moment old can only make the
// answer more careful, never less: what the device reports as free, less what is promised and not yet taken; and the
// device's total, less everything promised.
func MakePlan(in PlanInput) registry.Plan {
	p := registry.Plan{ModelID: in.Model.ModelID, Engine: in.Engine, EngineWhy: in.Why}
	if in.Engine == "external" || in.Elsewhere {
		p.Verdict, p.Device, p.Sentence = registry.VerdictFits, remote, "Runs elsewhere: it takes no memory of this machine."
		return p
	}
	usable := usableGPUs(in)
	onGPU, why, bad := chooseDevice(in, usable)
	p.DeviceWhy = why
	if bad != nil {
		p.Verdict, p.Device, p.Shortage, p.Needs = registry.VerdictNever, string(registry.DeviceCUDA), bad, in.NeedGPU
		p.Sentence = why
		return p
	}
	if !onGPU {
		p.Needs = in.NeedCPU
		return planOn(p, in, []room{hostRoom(in)}, in.NeedCPU.Bytes())
	}
	p.Needs = in.NeedGPU
	rooms := make([]room, 0, len(usable))
	for _, g := range usable {
		rooms = append(rooms, gpuRoom(in, g))
	}
	// The emptiest first; among equals the lowest number, so that the choice is stable.
	slices.SortStableFunc(rooms, func(a, b room) int {
		return cmp.Or(cmp.Compare(b.available, a.available), cmp.Compare(a.gpu, b.gpu))
	})
	need := in.NeedGPU.Bytes()
	if len(in.Model.GPUIDs) > 1 {
		// Several GPUs named: the model is split over all of them.
		return planOn(p, in, rooms, need)
	}
	// As few GPUs as do. What fits now is best, then what fits after evictions, then what has to wait; for each of
	// these only the GPUs count that can come to hold their share, or a small empty one would hide a large busy one.
	for _, can := range []func(r room, share int64) bool{
		func(r room, share int64) bool { return r.available >= share },
		func(r room, share int64) bool { return r.available+r.evictable >= share },
		func(r room, share int64) bool { return r.total >= share },
	} {
		for k := 1; k <= len(rooms); k++ {
			share := shareOf(need, k)
			able := slices.DeleteFunc(slices.Clone(rooms), func(r room) bool { return !can(r, share) })
			if len(able) >= k {
				return planOn(p, in, able[:k], need)
			}
		}
	}
	return planOn(p, in, rooms, need)
}

// shareOf returns what each of n devices has to hold, in bytes.
func shareOf(need int64, n int) int64 { return (need + int64(n) - 1) / int64(n) }

func usableGPUs(in PlanInput) []registry.GPU {
	var out []registry.GPU
	for _, g := range in.Sample.GPUs {
		if g.Usable && (len(in.Model.GPUIDs) == 0 || slices.Contains(in.Model.GPUIDs, g.Index)) {
			out = append(out, g)
		}
	}
	return out
}

// chooseDevice applies the guide's rule: auto is CUDA if there is a usable one, else CPU; cuda where there is none is
// a lack of resources.
func chooseDevice(in PlanInput, usable []registry.GPU) (onGPU bool, why string, bad *registry.Shortage) {
	buildHasCUDA := slices.Contains(in.Builds, registry.DeviceCUDA)
	none := func(msg string) (bool, string, *registry.Shortage) {
		return false, msg, &registry.Shortage{Device: string(registry.DeviceCUDA), Needed: in.NeedGPU.Bytes(), Short: in.NeedGPU.Bytes()}
	}
	switch in.Device {
	case registry.DeviceCPU:
		return false, "asked for", nil
	case registry.DeviceCUDA:
		switch {
		case len(in.Sample.GPUs) == 0 && in.Sample.GPUProblem != "":
			return none("There is no usable GPU: " + in.Sample.GPUProblem + ". Set device_preference to cpu or auto to load it in main memory.")
		case len(in.Sample.GPUs) == 0:
			return none("This machine has no GPU, and the model asks for cuda. Set device_preference to cpu or auto to load it in main memory.")
		case len(usable) == 0 || (len(in.Model.GPUIDs) > 0 && len(usable) < len(in.Model.GPUIDs)):
			return none("Not every GPU that the model may use is usable: " + gpuProblems(in) + ".")
		case !buildHasCUDA:
			return none(cmp.Or(in.NoCUDA, "This build of "+in.Engine+" cannot use CUDA. Install one that can, or set device_preference to cpu or auto."))
		}
		return true, "asked for", nil
	case registry.DeviceAuto:
	}
	switch {
	case len(usable) > 0 && buildHasCUDA && (len(in.Model.GPUIDs) == 0 || len(usable) == len(in.Model.GPUIDs)):
		return true, "auto: a usable GPU", nil
	case len(usable) > 0 && !buildHasCUDA:
		return false, "auto: this build of " + in.Engine + " cannot use the GPU", nil
	case in.Sample.GPUProblem != "":
		return false, "auto: " + in.Sample.GPUProblem, nil
	}
	return false, "auto: no usable GPU", nil
}

func gpuProblems(in PlanInput) string {
	var out []string
	seen := map[int]bool{}
	for _, g := range in.Sample.GPUs {
		seen[g.Index] = true
		if !g.Usable && (len(in.Model.GPUIDs) == 0 || slices.Contains(in.Model.GPUIDs, g.Index)) {
			out = append(out, fmt.Sprintf("GPU %d: %s", g.Index, cmp.Or(g.Problem, "not usable")))
		}
	}
	for _, id := range in.Model.GPUIDs {
		if !seen[id] {
			out = append(out, fmt.Sprintf("GPU %d: there is none of this number", id))
		}
	}
	if len(out) == 0 {
		return "none of them is usable"
	}
	return strings.Join(out, "; ")
}

func hostRoom(in PlanInput) room {
	return makeRoom(in, "cpu", -1, in.Sample.Host.RAMTotal, in.Sample.Host.RAMAvailable)
}

func gpuRoom(in PlanInput, g registry.GPU) room {
	return makeRoom(in, "cuda:"+strconv.Itoa(g.Index), g.Index, g.MemoryTotal, g.MemoryFree)
}

func makeRoom(in PlanInput, device string, gpu int, total, free int64) room {
	r := room{device: device, gpu: gpu, total: total}
	var promised, untaken, taken int64
	for _, h := range in.Reservations {
		if h.Device != device {
			continue
		}
		held := max(h.Bytes, h.Taken)
		promised += held
		taken += h.Taken
		untaken += held - h.Taken
		who := holder(h, in)
		if who.Evictable {
			r.evictable += held
		}
		r.holders = append(r.holders, who)
	}
	r.available = min(free-untaken, total-promised)
	r.foreign = max(0, total-free-taken)
	if r.foreign > 0 {
		r.holders = append(r.holders, foreignHolders(in.Sample, r, in.Reservations)...)
	}
	slices.SortStableFunc(r.holders, func(a, b registry.Holder) int { return cmp.Compare(b.Bytes, a.Bytes) })
	return r
}

func holder(h registry.Reservation, in PlanInput) registry.Holder {
	out := registry.Holder{ModelID: h.ModelID, PID: h.PID, Bytes: max(h.Bytes, h.Taken), Promised: h.State != registry.RuntimeReady && h.State != registry.RuntimeSleeping}
	if h.State == registry.RuntimeReady || h.State == registry.RuntimeSleeping {
		out.Evictable = !h.Pinned && h.Active == 0 && h.Priority <= in.Model.Priority
		if !h.LastUsedAt.IsZero() {
			out.IdleFor = registry.Duration(max(0, in.Now.Sub(h.LastUsedAt)).Round(time.Second))
		}
	}
	return out
}

// foreignHolders names the processes on a GPU that are not ours; on the host, where everything else of the machine
// counts, it is one line.
func foreignHolders(s registry.Sample, r room, ours []registry.Reservation) []registry.Holder {
	if r.gpu < 0 {
		return []registry.Holder{{Bytes: r.foreign}}
	}
	mine := map[int]bool{}
	for _, h := range ours {
		if h.PID > 0 {
			mine[h.PID] = true
		}
	}
	var out []registry.Holder
	left := r.foreign
	for _, g := range s.GPUs {
		if g.Index != r.gpu {
			continue
		}
		for _, p := range g.Processes {
			if !mine[p.PID] && p.Bytes > 0 {
				out = append(out, registry.Holder{PID: p.PID, Bytes: p.Bytes})
				left -= p.Bytes
			}
		}
	}
	if left > 0 {
		out = append(out, registry.Holder{Bytes: left})
	}
	return out
}

// planOn decides for a model that is split evenly over rooms.
func planOn(p registry.Plan, in PlanInput, rooms []room, need int64) registry.Plan {
	share := shareOf(need, len(rooms))
	p.Device = deviceName(rooms)
	for _, r := range rooms {
		if r.gpu >= 0 {
			p.GPUs = append(p.GPUs, r.gpu)
		}
	}
	tight := slices.MinFunc(rooms, func(a, b room) int { return cmp.Compare(a.available, b.available) })
	for _, r := range rooms {
		p.Free += max(0, r.available)
	}
	p.Spare = tight.available - share
	if tight.available >= share || need == 0 {
		p.Verdict, p.Spare = registry.VerdictFits, max(0, p.Spare)
		p.Sentence = fmt.Sprintf("Fits %s now, with %s to spare.", place(rooms), registry.Bytes(p.Spare))
		if need == 0 {
			p.Sentence = fmt.Sprintf("Nothing is known about its size. It would be loaded %s without a check; set %s to have one.", place(rooms), requiredField(rooms))
		}
		return p
	}
	short := func(r room) *registry.Shortage {
		free := max(0, r.available)
		return &registry.Shortage{Device: r.device, Needed: share, Free: free, Short: share - free, Total: r.total, Holders: r.holders}
	}
	p.Shortage = short(tight)
	if small := slices.MinFunc(rooms, func(a, b room) int { return cmp.Compare(a.total, b.total) }); share > small.total {
		p.Verdict, p.Shortage = registry.VerdictNever, short(small)
		p.Sentence = fmt.Sprintf("Can never fit %s: it needs %s, which is %s more than there is.", place(rooms), registry.Bytes(share), registry.Bytes(share-small.total))
		if len(rooms) > 1 {
			p.Sentence = fmt.Sprintf("Can never fit %s: each would have to hold %s, which is %s more than %s has.", place(rooms), registry.Bytes(share), registry.Bytes(share-small.total), deviceTitle(small.device))
		}
		return p
	}
	if evict, ok := chooseEvictions(in, rooms, share); ok {
		p.Verdict, p.Evict = registry.VerdictEvict, evict
		ids := make([]string, len(evict))
		for i, h := range evict {
			ids[i] = h.ModelID
		}
		p.Sentence = fmt.Sprintf("Fits %s after %s %s.", place(rooms), joinAnd(ids), map[bool]string{true: "leaves", false: "leave"}[len(ids) == 1])
		return p
	}
	if in.Model.DevicePreference == registry.DeviceCPU || tight.gpu < 0 {
		p.Sentence = fmt.Sprintf("Too little memory: needs %s, %s are free, %s short.", registry.Bytes(share), registry.Bytes(p.Shortage.Free), registry.Bytes(p.Shortage.Short))
	} else {
		p.Sentence = fmt.Sprintf("Too little memory on %s: needs %s, %s are free, %s short.", deviceTitle(tight.device), registry.Bytes(share), registry.Bytes(p.Shortage.Free), registry.Bytes(p.Shortage.Short))
	}
	p.Verdict = registry.VerdictWaits
	if share > tight.total-tight.foreign {
		p.Sentence += " Most of the rest is held by processes that are not ours."
	}
	return p
}

// chooseEvictions picks idle instances, the least important and longest idle first, until every room has its share,
// then drops those that turn out not to be needed.
func chooseEvictions(in PlanInput, rooms []room, share int64) ([]registry.Holder, bool) {
	type candidate struct {
		h        registry.Holder
		priority int
		used     time.Time
	}
	byModel := map[string]*candidate{}
	gives := map[string]map[string]int64{} // model → device → bytes
	for _, r := range in.Reservations {
		h := holder(r, in)
		if !h.Evictable {
			continue
		}
		if byModel[r.ModelID] == nil {
			byModel[r.ModelID] = &candidate{h: h, priority: r.Priority, used: r.LastUsedAt}
			gives[r.ModelID] = map[string]int64{}
		}
		gives[r.ModelID][r.Device] += max(r.Bytes, r.Taken)
	}
	order := make([]*candidate, 0, len(byModel))
	for _, c := range byModel {
		order = append(order, c)
	}
	slices.SortFunc(order, func(a, b *candidate) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), a.used.Compare(b.used), cmp.Compare(a.h.ModelID, b.h.ModelID))
	})
	enough := func(out []*candidate) bool {
		for _, r := range rooms {
			have := r.available
			for _, c := range out {
				have += gives[c.h.ModelID][r.device]
			}
			if min(have, r.total-r.foreign) < share {
				return false
			}
		}
		return true
	}
	var chosen []*candidate
	for _, c := range order {
		if enough(chosen) {
			break
		}
		useful := false
		for _, r := range rooms {
			useful = useful || gives[c.h.ModelID][r.device] > 0
		}
		if useful {
			chosen = append(chosen, c)
		}
	}
	if len(chosen) == 0 || !enough(chosen) {
		return nil, false
	}
	for i := 0; i < len(chosen); {
		without := slices.Delete(slices.Clone(chosen), i, i+1)
		if enough(without) {
			chosen = without
		} else {
			i++
		}
	}
	out := make([]registry.Holder, len(chosen))
	for i, c := range chosen {
		out[i] = c.h
		out[i].Bytes = 0
		for _, b := range gives[c.h.ModelID] {
			out[i].Bytes += b
		}
	}
	return out, true
}

func deviceName(rooms []room) string {
	if len(rooms) == 1 {
		return rooms[0].device
	}
	ids := make([]int, len(rooms))
	for i, r := range rooms {
		ids[i] = r.gpu
	}
	slices.Sort(ids)
	parts := make([]string, len(ids))
	for i, id := range ids {
		parts[i] = strconv.Itoa(id)
	}
	return "cuda:" + strings.Join(parts, ",")
}

func place(rooms []room) string {
	return where(deviceName(rooms))
}

// where completes a sentence: "fits …", "ready …", "came back …".
func where(device string) string {
	switch device {
	case "cpu":
		return "in main memory"
	case remote:
		return "elsewhere"
	}
	return "on " + deviceTitle(device)
}

func deviceTitle(device string) string {
	if ids, ok := strings.CutPrefix(device, "cuda:"); ok {
		if strings.Contains(ids, ",") {
			return "GPUs " + strings.ReplaceAll(ids, ",", ", ")
		}
		return "GPU " + ids
	}
	if device == "cpu" {
		return "main memory"
	}
	return device
}

func requiredField(rooms []room) string {
	if rooms[0].gpu < 0 {
		return "required_ram_mb"
	}
	return "required_gpu_memory_mb"
}

func joinAnd(list []string) string {
	switch len(list) {
	case 0:
		return ""
	case 1:
		return list[0]
	}
	return strings.Join(list[:len(list)-1], ", ") + " and " + list[len(list)-1]
}
