package manager

import (
	"slices"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ledger holds the promised bytes. Deciding and promising are one step under its lock, so however many loads start at
// once, the sum of what is promised on a device never exceeds what the device has.
type ledger struct {
	mu   sync.Mutex
	rows map[string][]registry.Reservation // by instance id; one row for each device
}

func newLedger() *ledger { return &ledger{rows: map[string][]registry.Reservation{}} }

// admit calls decide with every reservation that is not the model's own and, if the plan fits or force is set,
// promises the plan's bytes to the instance.
func (l *ledger) admit(m registry.Model, instance string, force bool, decide func([]registry.Reservation) registry.Plan) (registry.Plan, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := decide(l.others(m.ModelID))
	if p.Verdict != registry.VerdictFits && (!force || p.Device == string(registry.DeviceCUDA)) {
		return p, false
	}
	l.rows[instance] = rowsOf(m, instance, p, registry.RuntimeStarting)
	return p, true
}

// restore puts back the promise of an instance that was found running after a restart.
func (l *ledger) restore(m registry.Model, instance string, p registry.Plan, state registry.RuntimeState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows[instance] = rowsOf(m, instance, p, state)
}

func rowsOf(m registry.Model, instance string, p registry.Plan, state registry.RuntimeState) []registry.Reservation {
	row := registry.Reservation{ModelID: m.ModelID, InstanceID: instance, State: state, Pinned: m.Pinned, Team: m.Team, Priority: m.Priority}
	if len(p.GPUs) == 0 {
		if p.Device == "cpu" {
			row.Device, row.Bytes = "cpu", p.Needs.Bytes()
			return []registry.Reservation{row}
		}
		return nil // remote: takes nothing here
	}
	rows := make([]registry.Reservation, len(p.GPUs))
	share := (p.Needs.Bytes() + int64(len(p.GPUs)) - 1) / int64(len(p.GPUs))
	for i, gpu := range p.GPUs {
		rows[i] = row
		rows[i].Device, rows[i].Bytes = deviceName([]room{{device: gpuName(gpu), gpu: gpu}}), share
	}
	return rows
}

// update changes the rows of an instance, if it has any.
func (l *ledger) update(instance string, change func(*registry.Reservation)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.rows[instance] {
		change(&l.rows[instance][i])
	}
}

// holds notes what an instance without a process holds in all, in bytes. On several GPUs it counts evenly, as it was
// promised: nobody tells how much is on which.
func (l *ledger) holds(instance string, ram, gpu int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rows := l.rows[instance]
	for i := range rows {
		rows[i].Taken = shareOf(gpu, len(rows))
		if rows[i].Device == string(registry.DeviceCPU) {
			rows[i].Taken = ram
		}
	}
}

// updateModel changes the rows of every instance of a model.
func (l *ledger) updateModel(id string, change func(*registry.Reservation)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rows := range l.rows {
		for i := range rows {
			if rows[i].ModelID == id {
				change(&rows[i])
			}
		}
	}
}

// of returns the rows of an instance.
func (l *ledger) of(instance string) []registry.Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.rows[instance])
}

// shrink leaves an instance that sleeps only what it still holds, by device, in bytes. One that was released stays so.
func (l *ledger) shrink(instance string, held map[string]int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old := l.rows[instance]
	if len(old) == 0 {
		return
	}
	rows := []registry.Reservation{}
	for device, n := range held {
		row := old[0]
		row.Device, row.Bytes, row.Taken, row.State = device, n, n, registry.RuntimeSleeping
		rows = append(rows, row)
	}
	if len(rows) == 0 { // nothing is known of it; it is still there
		row := old[0]
		row.Bytes, row.Taken, row.State = 0, 0, registry.RuntimeSleeping
		rows = append(rows, row)
	}
	l.rows[instance] = rows
}

// release gives the instance's bytes back. It is idempotent.
func (l *ledger) release(instance string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.rows, instance)
}

// othersOf returns every reservation that is not the model's own.
func (l *ledger) othersOf(modelID string) []registry.Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.others(modelID)
}

// all returns every reservation, by device and model.
func (l *ledger) all() []registry.Reservation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.others("")
}

func (l *ledger) others(modelID string) []registry.Reservation {
	out := []registry.Reservation{}
	for _, rows := range l.rows {
		for _, r := range rows {
			if modelID == "" || r.ModelID != modelID {
				out = append(out, r)
			}
		}
	}
	slices.SortFunc(out, func(a, b registry.Reservation) int {
		switch {
		case a.Device != b.Device && a.Device < b.Device, a.Device == b.Device && a.InstanceID < b.InstanceID:
			return -1
		case a.Device == b.Device && a.InstanceID == b.InstanceID:
			return 0
		}
		return 1
	})
	return out
}
