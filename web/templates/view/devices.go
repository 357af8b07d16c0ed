package view

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Device is one GPU, or the host's memory, with who holds what. All bytes.
type Device struct {
	ID       string // gpu-0, ram; part of element ids
	Name     string // GPU 0 · NVIDIA H100 80GB HBM3
	Used     int64
	Promised int64
	Total    int64
	Segments []Share
	Notes    []string  // utilisation, temperature, power
	Problem  string    // why nothing can be loaded on it
	Spark    []float64 // used share of the last minutes, 0 … 1, oldest first
}

// Share is one part of a device's bar.
type Share struct {
	Label    string
	ModelID  string // "" for what is not ours
	Color    int    // 1 … 6 for models; 0 for what is not ours
	Promised bool   // hatched: reserved, not yet taken
	Bytes    int64
	X, W     float64 // percent of the bar
}

// Colors is how many colours models are told apart by.
const Colors = 6

// palette gives each model a colour that stays the same from page to page, and different ones to models that are
// shown together as far as there are colours.
type palette map[string]int

func (p palette) of(id string) int {
	if c, ok := p[id]; ok {
		return c
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	want := int(h.Sum32()%Colors) + 1
	taken := make(map[int]bool, len(p))
	for _, c := range p {
		taken[c] = true
	}
	for i := range Colors {
		c := (want-1+i)%Colors + 1
		if !taken[c] {
			p[id] = c
			return c
		}
	}
	p[id] = want
	return want
}

// DevicesOf shows the newest sample with its reservations. spark holds the used shares (0 … 1) of the last minutes
// by Device.ID; it may be nil.
func DevicesOf(res registry.Resources, spark map[string][]float64) []Device {
	colors := palette{}
	ids := make([]string, 0, len(res.Reservations))
	for _, r := range res.Reservations {
		ids = append(ids, r.ModelID)
	}
	slices.Sort(ids)
	for _, id := range ids {
		colors.of(id)
	}
	var out []Device
	for _, g := range res.GPUs {
		d := Device{ID: "gpu-" + strconv.Itoa(g.Index), Name: fmt.Sprintf("GPU %d · %s", g.Index, shortGPU(g.Name)), Used: g.MemoryUsed, Total: g.MemoryTotal}
		if !g.Usable {
			d.Problem = g.Problem
			if d.Problem == "" {
				d.Problem = "Models cannot be loaded on it."
			}
		}
		if g.Utilization >= 0 {
			d.Notes = append(d.Notes, fmt.Sprintf("%d%% busy", g.Utilization))
		}
		if g.Temperature >= 0 {
			d.Notes = append(d.Notes, fmt.Sprintf("%d °C", g.Temperature))
		}
		if g.Power >= 0 {
			d.Notes = append(d.Notes, fmt.Sprintf("%.0f W", g.Power))
		}
		d.fill(res.Reservations, "cuda:"+strconv.Itoa(g.Index), "not ours", foreignPIDs(g, res.Reservations), colors)
		d.Spark = spark[d.ID]
		out = append(out, d)
	}
	h := res.Host
	if h.RAMTotal > 0 {
		name := "Memory · " + Plural(h.CPUs, "core", "cores")
		d := Device{ID: "ram", Name: name, Used: h.RAMTotal - h.RAMAvailable, Total: h.RAMTotal}
		d.Notes = append(d.Notes, fmt.Sprintf("CPU %.0f%% busy", h.CPUPercent))
		if h.CgroupLimit > 0 && h.CgroupLimit == h.RAMTotal {
			d.Notes = append(d.Notes, "limited by the container")
		}
		d.fill(res.Reservations, "cpu", "system", "", colors)
		d.Spark = spark[d.ID]
		out = append(out, d)
	}
	return out
}

// fill sets the segments in this order: models, promised, not ours. What is left of the bar is free.
func (d *Device) fill(all []registry.Reservation, device, foreign, pids string, colors palette) {
	var held, promised []Share
	var ours int64
	for _, r := range all {
		if !onDevice(r.Device, device) {
			continue
		}
		share := int64(1)
		if n := strings.Count(r.Device, ","); n > 0 {
			share += int64(n)
		}
		taken := r.Taken
		if device == "cpu" && r.State != registry.RuntimeStarting {
			// Main memory of a model that runs is its own, although what is mapped from its file counts as available.
			taken = max(taken, r.Bytes)
		}
		taken, rest := taken/share, max(r.Bytes-taken, 0)/share
		ours += taken
		c := colors.of(r.ModelID)
		if taken > 0 {
			held = append(held, Share{Label: r.ModelID + " · " + Bytes(taken), ModelID: r.ModelID, Color: c, Bytes: taken})
		}
		// A ready model that took less than it was promised keeps the rest reserved; only a rest that matters is drawn.
		if rest > d.Total/200 {
			promised = append(promised, Share{Label: r.ModelID + " · promised " + Bytes(rest), ModelID: r.ModelID, Color: c, Promised: true, Bytes: rest})
			d.Promised += rest
		}
	}
	d.Segments = slices.Concat(held, promised)
	if other := d.Used - ours; other > d.Total/1000 {
		label := foreign + " · " + Bytes(other)
		if pids != "" {
			label += " (" + pids + ")"
		}
		d.Segments = append(d.Segments, Share{Label: label, Bytes: other})
	}
	d.layout()
}

func (d *Device) layout() {
	if d.Total <= 0 {
		return
	}
	x := 0.0
	for i := range d.Segments {
		s := &d.Segments[i]
		s.X = x
		s.W = min(float64(s.Bytes)/float64(d.Total)*100, 100-x)
		x += s.W
	}
}

// Free is what nobody holds and nobody was promised; never negative.
func (d Device) Free() int64 { return max(d.Total-d.Used-d.Promised, 0) }

// Sentence says the bar in words, for those who do not see it.
func (d Device) Sentence() string {
	parts := make([]string, 0, len(d.Segments)+1)
	for _, s := range d.Segments {
		parts = append(parts, s.Label)
	}
	parts = append(parts, "free · "+Bytes(d.Free()))
	return fmt.Sprintf("%s of %s used: %s", Bytes(d.Used), Bytes(d.Total), strings.Join(parts, ", "))
}

func onDevice(reserved, device string) bool {
	if reserved == device {
		return true
	}
	list, isGPU := strings.CutPrefix(reserved, "cuda:")
	one, wantGPU := strings.CutPrefix(device, "cuda:")
	return isGPU && wantGPU && slices.Contains(strings.Split(list, ","), one)
}

func foreignPIDs(g registry.GPU, all []registry.Reservation) string {
	var pids []string
	for _, p := range g.Processes {
		if slices.ContainsFunc(all, func(r registry.Reservation) bool { return r.PID == p.PID && p.PID != 0 }) {
			continue
		}
		pids = append(pids, strconv.Itoa(p.PID))
	}
	switch {
	case len(pids) == 0:
		return ""
	case len(pids) == 1:
		return "pid " + pids[0]
	case len(pids) <= 3:
		return "pids " + strings.Join(pids, ", ")
	}
	return fmt.Sprintf("%d processes", len(pids))
}

func shortGPU(name string) string {
	return strings.TrimPrefix(strings.TrimPrefix(name, "NVIDIA "), "GeForce ")
}

// SparkPath draws shares (0 … 1) as an SVG path in a box of 100 by 36; closed adds the floor, for the filled area.
func SparkPath(points []float64, closed bool) string {
	if len(points) < 2 {
		return ""
	}
	var b strings.Builder
	for i, p := range points {
		x := float64(i) / float64(len(points)-1) * 100
		y := 35 - min(max(p, 0), 1)*34
		op := "L"
		if i == 0 {
			op = "M"
		}
		fmt.Fprintf(&b, "%s%s %s", op, coord(x), coord(y))
	}
	if closed {
		b.WriteString("L100 36L0 36Z")
	}
	return b.String()
}

func coord(f float64) string {
	return strings.TrimSuffix(strings.TrimRight(strconv.FormatFloat(f, 'f', 2, 64), "0"), ".")
}

// Percentage writes a length of a bar as an SVG attribute.
func Percentage(f float64) string { return strconv.FormatFloat(f, 'f', 2, 64) + "%" }
