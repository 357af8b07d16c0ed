package manager

import (
	stdcmp "cmp"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

const gb = int64(1 << 30)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// world draws a machine that can exist: what a device reports as free is what neither strangers nor our engines hold.
// Devices may be promised more than they have, as after an override.
func world(t *rapid.T) PlanInput {
	gpus := rapid.IntRange(0, 4).Draw(t, "gpus")
	in := PlanInput{
		Model:   registry.Model{ModelID: "new", DevicePreference: registry.DeviceAuto, Priority: rapid.IntRange(-2, 2).Draw(t, "priority")},
		Device:  rapid.SampledFrom(registry.Devices).Draw(t, "device"),
		Engine:  "fake",
		Builds:  rapid.SampledFrom([][]registry.Device{{registry.DeviceCPU}, {registry.DeviceCPU, registry.DeviceCUDA}}).Draw(t, "builds"),
		NeedGPU: need(t, "gpu"), NeedCPU: need(t, "cpu"), Now: noon,
	}
	if gpus > 0 && rapid.IntRange(0, 2).Draw(t, "named") == 0 {
		in.Model.GPUIDs = rapid.SliceOfNDistinct(rapid.IntRange(0, gpus), 1, gpus, rapid.ID[int]).Draw(t, "gpu_ids")
	}
	used := map[string]int64{}
	for i := range rapid.IntRange(0, 6).Draw(t, "instances") {
		rt := rapid.SampledFrom([]registry.RuntimeState{registry.RuntimeReady, registry.RuntimeReady, registry.RuntimeSleeping, registry.RuntimeStarting, registry.RuntimeStopping}).Draw(t, "state")
		row := registry.Reservation{ModelID: fmt.Sprintf("m%d", i), InstanceID: fmt.Sprintf("i%d", i), State: rt, PID: 100 + i,
			Pinned: rapid.IntRange(0, 3).Draw(t, "pinned") == 0, Priority: rapid.IntRange(-2, 2).Draw(t, "holder priority"),
			Active: max(0, rapid.IntRange(-3, 2).Draw(t, "active")), LastUsedAt: noon.Add(-time.Duration(rapid.IntRange(0, 5).Draw(t, "idle")) * time.Minute)}
		devices := []string{"cpu"}
		if gpus > 0 && rapid.Bool().Draw(t, "on gpu") {
			devices = nil
			for _, g := range rapid.SliceOfNDistinct(rapid.IntRange(0, gpus-1), 1, 2, rapid.ID[int]).Filter(func(s []int) bool { return len(s) <= gpus }).Draw(t, "on") {
				devices = append(devices, gpuName(g))
			}
		}
		for _, d := range devices {
			row.Device, row.Bytes = d, rapid.Int64Range(0, 20).Draw(t, "bytes")*gb
			row.Taken = rapid.Int64Range(0, 22).Draw(t, "taken") * gb
			if rt == registry.RuntimeStarting {
				row.Taken = 0
			}
			used[d] += row.Taken
			in.Reservations = append(in.Reservations, row)
		}
	}
	total := func(d string) (total, free int64) {
		free = rapid.Int64Range(0, 24).Draw(t, "free "+d) * gb
		return free + used[d] + rapid.Int64Range(0, 8).Draw(t, "foreign "+d)*gb, free
	}
	in.Sample.Host.RAMTotal, in.Sample.Host.RAMAvailable = total("cpu")
	for i := range gpus {
		g := hwtest.GPU(i, 0)
		g.MemoryTotal, g.MemoryFree = total(gpuName(i))
		g.MemoryUsed = g.MemoryTotal - g.MemoryFree
		g.Usable = rapid.IntRange(0, 5).Draw(t, "usable") > 0
		in.Sample.GPUs = append(in.Sample.GPUs, g)
	}
	return in
}

func need(t *rapid.T, what string) registry.Footprint {
	f := registry.Footprint{Estimated: rapid.Int64Range(0, 60).Draw(t, what+" estimated") * gb / 2, Basis: "file size"}
	if rapid.IntRange(0, 3).Draw(t, what+" is given") == 0 {
		f.Given = rapid.Int64Range(1, 40).Draw(t, what+" given") * gb
	}
	return f
}

// device is a device of a world, counted afresh and in another way than the planner does.
type device struct {
	name          string
	total, unheld int64 // unheld: total less strangers and promises; negative after an override
	evictable     map[string]int64
}

func devicesOf(in PlanInput, names []string) []device {
	out := make([]device, len(names))
	for i, name := range names {
		d := device{name: name, total: in.Sample.Host.RAMTotal, unheld: in.Sample.Host.RAMAvailable, evictable: map[string]int64{}}
		for _, g := range in.Sample.GPUs {
			if gpuName(g.Index) == name {
				d.total, d.unheld = g.MemoryTotal, g.MemoryFree
			}
		}
		for _, r := range in.Reservations {
			if r.Device != name {
				continue
			}
			d.unheld -= max(r.Bytes, r.Taken) - r.Taken
			if mayEvict(r, in) {
				d.evictable[r.ModelID] += max(r.Bytes, r.Taken)
			}
		}
		out[i] = d
	}
	return out
}

func mayEvict(r registry.Reservation, in PlanInput) bool {
	return (r.State == registry.RuntimeReady || r.State == registry.RuntimeSleeping) && !r.Pinned && r.Active == 0 && r.Priority <= in.Model.Priority
}

// fitsAfter reports whether each device has its share once these models have left.
func fitsAfter(ds []device, share int64, gone []string) bool {
	for _, d := range ds {
		have := d.unheld
		for _, id := range gone {
			have += d.evictable[id]
		}
		if have < share {
			return false
		}
	}
	return true
}

// choices are all sets of devices that the plan may choose from, each with the bytes for each of its devices.
func choices(in PlanInput) (sets [][]device, shares []int64) {
	if p := MakePlan(in); !strings.HasPrefix(p.Device, "cuda:") {
		return [][]device{devicesOf(in, []string{"cpu"})}, []int64{in.NeedCPU.Bytes()}
	}
	var names []string
	for _, g := range usableGPUs(in) {
		names = append(names, gpuName(g.Index))
	}
	for mask := 1; mask < 1<<len(names); mask++ {
		var set []string
		for i, n := range names {
			if mask&(1<<i) != 0 {
				set = append(set, n)
			}
		}
		if len(in.Model.GPUIDs) > 1 && len(set) != len(names) {
			continue
		}
		n := int64(len(set))
		sets, shares = append(sets, devicesOf(in, set)), append(shares, (in.NeedGPU.Bytes()+n-1)/n)
	}
	return sets, shares
}

func modelsOf(in PlanInput, keep func(registry.Reservation) bool) []string {
	var out []string
	for _, r := range in.Reservations {
		if keep(r) && !slices.Contains(out, r.ModelID) {
			out = append(out, r.ModelID)
		}
	}
	return out
}

func TestPlanIsRight(t *testing.T) {
	t.Parallel()
	seen := map[registry.Verdict]int{}
	for range 150 { // rapid.Check runs 100 of them each
		rapid.Check(t, func(t *rapid.T) {
			in := world(t)
			p := MakePlan(in)
			seen[p.Verdict]++
			checkDevice(t, in, p)
			if p.Shortage != nil && p.Device == "cuda" {
				return // no usable GPU at all; checkDevice has looked at it
			}
			checkVerdict(t, in, p)
			if diff := cmp.Diff(p, MakePlan(in)); diff != "" {
				t.Fatalf("the same input gave another plan: %s", diff)
			}
		})
		if t.Failed() {
			return
		}
	}
	for _, v := range []registry.Verdict{registry.VerdictFits, registry.VerdictEvict, registry.VerdictWaits, registry.VerdictNever} {
		if seen[v] < 100 {
			t.Errorf("only %d plans were %s: the generator does not reach it", seen[v], v)
		}
	}
	t.Log(seen)
}

// checkDevice checks the guide's rule for the device.
func checkDevice(t *rapid.T, in PlanInput, p registry.Plan) {
	cuda := slices.Contains(in.Builds, registry.DeviceCUDA)
	usable := 0
	for _, g := range in.Sample.GPUs {
		if g.Usable && (len(in.Model.GPUIDs) == 0 || slices.Contains(in.Model.GPUIDs, g.Index)) {
			usable++
		}
	}
	can := cuda && usable > 0 && usable >= len(in.Model.GPUIDs)
	switch {
	case in.Device == registry.DeviceCPU || (in.Device == registry.DeviceAuto && !can):
		if p.Device != "cpu" || len(p.GPUs) != 0 || p.Needs != in.NeedCPU {
			t.Fatalf("want it in main memory, got %+v", p)
		}
	case !can:
		if p.Verdict != registry.VerdictNever || p.Shortage == nil || p.Device != "cuda" || p.Shortage.Needed != in.NeedGPU.Bytes() {
			t.Fatalf("cuda without a GPU it may use must be a shortage, got %+v", p)
		}
	default:
		if len(p.GPUs) == 0 || p.Needs != in.NeedGPU {
			t.Fatalf("want it on a GPU, got %+v", p)
		}
		for _, i := range p.GPUs {
			if len(in.Model.GPUIDs) > 0 && !slices.Contains(in.Model.GPUIDs, i) {
				t.Fatalf("GPU %d is not among %v", i, in.Model.GPUIDs)
			}
			if !in.Sample.GPUs[i].Usable {
				t.Fatalf("GPU %d is not usable", i)
			}
		}
		if len(in.Model.GPUIDs) > 1 && len(p.GPUs) != len(in.Model.GPUIDs) {
			t.Fatalf("named are %v, used are %v", in.Model.GPUIDs, p.GPUs)
		}
		if got := gpusOf(p.Device); !slices.IsSorted(got) || !sameInts(got, p.GPUs) {
			t.Fatalf("device %s does not name %v", p.Device, p.GPUs)
		}
	}
}

func sameInts(a, b []int) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func checkVerdict(t *rapid.T, in PlanInput, p registry.Plan) {
	names := []string{"cpu"}
	if len(p.GPUs) > 0 {
		names = nil
		for _, i := range p.GPUs {
			names = append(names, gpuName(i))
		}
	}
	mine := devicesOf(in, names)
	n := int64(len(mine))
	share := (p.Needs.Bytes() + n - 1) / n
	evictable := modelsOf(in, func(r registry.Reservation) bool { return mayEvict(r, in) })
	sets, shares := choices(in)
	possible := false // with an empty machine
	for i, set := range sets {
		all := true
		for _, d := range set {
			all = all && d.total >= shares[i]
		}
		possible = possible || all
		room := fitsAfter(set, shares[i], evictable)
		now := fitsAfter(set, shares[i], nil)
		if now && p.Verdict != registry.VerdictFits {
			t.Fatalf("%d bytes fit on each of %v, yet the plan is %+v", shares[i], set, p)
		}
		if room && p.Verdict != registry.VerdictFits && p.Verdict != registry.VerdictEvict {
			t.Fatalf("%d bytes fit on each of %v after evictions, yet the plan is %+v", shares[i], set, p)
		}
	}
	if (p.Verdict == registry.VerdictNever) == possible {
		t.Fatalf("possible on an empty machine: %v, plan %+v", possible, p)
	}
	switch p.Verdict {
	case registry.VerdictFits:
		if p.Shortage != nil || len(p.Evict) != 0 || p.Spare < 0 {
			t.Fatalf("fits, and yet %+v", p)
		}
		if share > 0 && !fitsAfter(mine, share, nil) { // what promises, strangers and it take together is within the total
			t.Fatalf("%d bytes over-commit one of %v", share, mine)
		}
	case registry.VerdictEvict:
		var gone []string
		for _, h := range p.Evict {
			if !slices.Contains(evictable, h.ModelID) {
				t.Fatalf("%s may not be evicted: %+v", h.ModelID, p)
			}
			gone = append(gone, h.ModelID)
		}
		if !fitsAfter(mine, share, gone) {
			t.Fatalf("evicting %v is not enough on %v for %d", gone, mine, share)
		}
		for i := range gone {
			if fitsAfter(mine, share, slices.Delete(slices.Clone(gone), i, i+1)) {
				t.Fatalf("%s need not leave: %+v", gone[i], p)
			}
		}
		fallthrough
	case registry.VerdictWaits, registry.VerdictNever:
		s := p.Shortage
		if s == nil || s.Needed != share || s.Short != s.Needed-s.Free || s.Short <= 0 || !slices.Contains(names, s.Device) {
			t.Fatalf("a shortage that does not add up: %+v", p)
		}
	case registry.VerdictLoaded:
		t.Fatalf("MakePlan knows nothing of what is loaded: %+v", p)
	}
	if p.Sentence == "" {
		t.Fatal("no sentence")
	}
}

// rank is how good a verdict is; 0 is best.
func rank(v registry.Verdict) int {
	return slices.Index([]registry.Verdict{registry.VerdictFits, registry.VerdictEvict, registry.VerdictWaits, registry.VerdictNever}, v)
}

func TestMoreMemoryNeverHurts(t *testing.T) {
	t.Parallel()
	for range 60 {
		rapid.Check(t, func(t *rapid.T) {
			in := world(t)
			before := MakePlan(in)
			more := in
			more.Sample.GPUs = slices.Clone(in.Sample.GPUs)
			if n := len(more.Sample.GPUs); n > 0 && rapid.Bool().Draw(t, "a GPU") {
				g := &more.Sample.GPUs[rapid.IntRange(0, n-1).Draw(t, "which")]
				extra := rapid.Int64Range(1, 30*gb).Draw(t, "extra")
				g.MemoryFree, g.MemoryTotal = g.MemoryFree+extra, g.MemoryTotal+extra
			} else {
				extra := rapid.Int64Range(1, 30*gb).Draw(t, "extra")
				more.Sample.Host.RAMAvailable += extra
				more.Sample.Host.RAMTotal += extra
			}
			after := MakePlan(more)
			if rank(after.Verdict) > rank(before.Verdict) {
				t.Fatalf("with more memory %s became %s\n%+v\n%+v", before.Verdict, after.Verdict, before, after)
			}
			fewer := in
			if len(in.Reservations) > 0 {
				i := rapid.IntRange(0, len(in.Reservations)-1).Draw(t, "leaves")
				fewer.Reservations = slices.Delete(slices.Clone(in.Reservations), i, i+1)
				if gone := in.Reservations[i]; gone.Taken == 0 && before.Verdict == registry.VerdictFits {
					if p := MakePlan(fewer); p.Verdict != registry.VerdictFits {
						t.Fatalf("without the promise to %s it does not fit any more: %+v", gone.ModelID, p)
					}
				}
			}
		})
		if t.Failed() {
			return
		}
	}
}

func TestPlanSentences(t *testing.T) {
	t.Parallel()
	cuda := []registry.Device{registry.DeviceCPU, registry.DeviceCUDA}
	gpu := func(i int, total, free int64) registry.GPU {
		g := hwtest.GPU(i, total)
		g.MemoryFree, g.MemoryUsed = free, total-free
		return g
	}
	idle := func(id, device string, bytes int64) registry.Reservation {
		return registry.Reservation{ModelID: id, InstanceID: id, Device: device, Bytes: bytes, Taken: bytes, State: registry.RuntimeReady, PID: 7, LastUsedAt: noon.Add(-time.Hour)}
	}
	needs := func(n int64) registry.Footprint { return registry.Footprint{Estimated: n, Basis: "gguf header"} }
	host := registry.Host{RAMTotal: 64 * gb, RAMAvailable: 50 * gb}
	broken := gpu(0, 24*gb, 24*gb)
	broken.Usable, broken.Problem = false, "fell off the bus"
	for name, c := range map[string]struct {
		in      PlanInput
		verdict registry.Verdict
		device  string
		want    string
	}{
		"main memory": {PlanInput{Device: "auto", NeedCPU: needs(2 * gb), Sample: registry.Sample{Host: host}},
			registry.VerdictFits, "cpu", "Fits in main memory now, with 48 GiB to spare."},
		"a GPU": {PlanInput{Device: "auto", Builds: cuda, NeedGPU: needs(2 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 4*gb), gpu(1, 24*gb, 20*gb)}}},
			registry.VerdictFits, "cuda:1", "Fits on GPU 1 now, with 18 GiB to spare."},
		"over two GPUs": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(30 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 18*gb), gpu(1, 24*gb, 20*gb)}}},
			registry.VerdictFits, "cuda:0,1", "Fits on GPUs 0, 1 now, with 3 GiB to spare."},
		"two GPUs named": {PlanInput{Model: registry.Model{GPUIDs: []int{0, 1}}, Device: "cuda", Builds: cuda, NeedGPU: needs(10 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 18*gb), gpu(1, 24*gb, 20*gb), gpu(2, 24*gb, 24*gb)}}},
			registry.VerdictFits, "cuda:0,1", "Fits on GPUs 0, 1 now, with 13 GiB to spare."},
		"unknown size": {PlanInput{Device: "cpu", NeedCPU: registry.Footprint{Basis: "unknown"}, Sample: registry.Sample{Host: host}},
			registry.VerdictFits, "cpu", "Nothing is known about its size. It would be loaded in main memory without a check; set required_ram_mb to have one."},
		"after one leaves": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(20 * gb), Reservations: []registry.Reservation{idle("a/b", "cuda:0", 10*gb)}, Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 14*gb)}}},
			registry.VerdictEvict, "cuda:0", "Fits on GPU 0 after a/b leaves."},
		"after two leave": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(23 * gb), Reservations: []registry.Reservation{idle("a", "cuda:0", 10*gb), idle("b", "cuda:0", 10*gb)}, Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 4*gb)}}},
			registry.VerdictEvict, "cuda:0", "Fits on GPU 0 after a and b leave."},
		"held by strangers": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(20 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 4*gb)}}},
			registry.VerdictWaits, "cuda:0", "Too little memory on GPU 0: needs 20 GiB, 4 GiB are free, 16 GiB short. Most of the rest is held by processes that are not ours."},
		"too little main memory": {PlanInput{Device: "cpu", NeedCPU: needs(55 * gb), Sample: registry.Sample{Host: host}},
			registry.VerdictWaits, "cpu", "Too little memory: needs 55 GiB, 50 GiB are free, 5 GiB short. Most of the rest is held by processes that are not ours."},
		"never": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(60 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 24*gb)}}},
			registry.VerdictNever, "cuda:0", "Can never fit on GPU 0: it needs 60 GiB, which is 36 GiB more than there is."},
		"never on two": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(60 * gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 24*gb), gpu(1, 24*gb, 24*gb)}}},
			registry.VerdictNever, "cuda:0,1", "Can never fit on GPUs 0, 1: each would have to hold 30 GiB, which is 6 GiB more than GPU 0 has."},
		"no GPU": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(gb), Sample: registry.Sample{Host: host}},
			registry.VerdictNever, "cuda", "This machine has no GPU, and the model asks for cuda. Set device_preference to cpu or auto to load it in main memory."},
		"no driver": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(gb), Sample: registry.Sample{Host: host, GPUProblem: "the driver is older than its library"}},
			registry.VerdictNever, "cuda", "There is no usable GPU: the driver is older than its library. Set device_preference to cpu or auto to load it in main memory."},
		"a broken GPU": {PlanInput{Device: "cuda", Builds: cuda, NeedGPU: needs(gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{broken}}},
			registry.VerdictNever, "cuda", "Not every GPU that the model may use is usable: GPU 0: fell off the bus."},
		"a GPU that is not there": {PlanInput{Model: registry.Model{GPUIDs: []int{3}}, Device: "cuda", Builds: cuda, NeedGPU: needs(gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 24*gb)}}},
			registry.VerdictNever, "cuda", "Not every GPU that the model may use is usable: GPU 3: there is none of this number."},
		"a build without CUDA": {PlanInput{Device: "cuda", Engine: "llamacpp", Builds: cuda[:1], NeedGPU: needs(gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 24*gb)}}},
			registry.VerdictNever, "cuda", "This build of llamacpp cannot use CUDA. Install one that can, or set device_preference to cpu or auto."},
		"a build without CUDA, which says why": {PlanInput{Device: "cuda", Builds: cuda[:1], NoCUDA: "Install it.", NeedGPU: needs(gb), Sample: registry.Sample{Host: host, GPUs: []registry.GPU{gpu(0, 24*gb, 24*gb)}}},
			registry.VerdictNever, "cuda", "Install it."},
		"elsewhere": {PlanInput{Engine: "external"}, registry.VerdictFits, "remote", "Runs elsewhere: it takes no memory of this machine."},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.in.Now = noon
			p := MakePlan(c.in)
			if p.Verdict != c.verdict || p.Device != c.device || p.Sentence != c.want {
				t.Errorf("got %s on %s: %s\nwant %s on %s: %s", p.Verdict, p.Device, p.Sentence, c.verdict, c.device, c.want)
			}
		})
	}
}

// A GPU that is full of idle models is better than two that are half empty and too small.
func TestPlanLooksBehindTheEmptiestGPU(t *testing.T) {
	t.Parallel()
	small, large := hwtest.GPU(0, 10*gb), hwtest.GPU(1, 40*gb)
	small.MemoryFree, large.MemoryFree = 8*gb, 5*gb
	p := MakePlan(PlanInput{Device: "cuda", Builds: registry.Devices, NeedGPU: registry.Footprint{Estimated: 30 * gb}, Now: noon,
		Reservations: []registry.Reservation{{ModelID: "idle", InstanceID: "idle", Device: "cuda:1", Bytes: 35 * gb, Taken: 35 * gb, State: registry.RuntimeReady}},
		Sample:       registry.Sample{GPUs: []registry.GPU{small, large}}})
	if p.Verdict != registry.VerdictEvict || p.Device != "cuda:1" || len(p.Evict) != 1 || p.Evict[0].Bytes != 35*gb {
		t.Errorf("want it on GPU 1 after idle has left, got %+v", p)
	}
}

func TestHolders(t *testing.T) {
	t.Parallel()
	g := hwtest.GPU(0, 24*gb)
	g.MemoryFree = 2 * gb
	g.Processes = []registry.GPUProcess{{PID: 7, Bytes: 10 * gb}, {PID: 9, Name: "python", Bytes: 5 * gb}}
	row := func(id string, bytes int64, change func(*registry.Reservation)) registry.Reservation {
		r := registry.Reservation{ModelID: id, InstanceID: id, Device: "cuda:0", Bytes: bytes, Taken: bytes, State: registry.RuntimeReady, LastUsedAt: noon.Add(-90 * time.Second)}
		change(&r)
		return r
	}
	p := MakePlan(PlanInput{Device: "cuda", Builds: registry.Devices, NeedGPU: registry.Footprint{Estimated: 23 * gb}, Now: noon, Sample: registry.Sample{GPUs: []registry.GPU{g}},
		Reservations: []registry.Reservation{
			row("pinned", 10*gb, func(r *registry.Reservation) { r.Pinned, r.PID = true, 7 }),
			row("starting", 4*gb, func(r *registry.Reservation) { r.State, r.Taken = registry.RuntimeStarting, 0 }),
			row("busy", 1*gb, func(r *registry.Reservation) { r.Active = 1 }),
			row("important", 2*gb, func(r *registry.Reservation) { r.Priority = 5 }),
			row("idle", 3*gb, func(*registry.Reservation) {}),
		}})
	want := []registry.Holder{
		{ModelID: "pinned", PID: 7, Bytes: 10 * gb, IdleFor: registry.Duration(90 * time.Second)},
		{PID: 9, Bytes: 5 * gb},
		{ModelID: "starting", Bytes: 4 * gb, Promised: true},
		{ModelID: "idle", Bytes: 3 * gb, Evictable: true, IdleFor: registry.Duration(90 * time.Second)},
		{ModelID: "important", Bytes: 2 * gb, IdleFor: registry.Duration(90 * time.Second)},
		{ModelID: "busy", Bytes: gb, IdleFor: registry.Duration(90 * time.Second)},
		{Bytes: gb},
	}
	if p.Verdict != registry.VerdictWaits || p.Shortage == nil {
		t.Fatalf("got %+v", p)
	}
	byBytes := func(a, b registry.Holder) int {
		return stdcmp.Or(stdcmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.ModelID, b.ModelID))
	}
	got := slices.Clone(p.Shortage.Holders)
	slices.SortFunc(got, byBytes)
	slices.SortFunc(want, byBytes)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
