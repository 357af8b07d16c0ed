package manager

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/hw/hwtest"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// However many ask at once, what is promised on a device is never more than it has. The sample never changes here: it
// is the worst case of one that is a moment old.
func TestPromisesNeverExceedTheDevice(t *testing.T) {
	t.Parallel()
	const askers, total = 200, 100 * int64(1e9)
	l := newLedger()
	sample := registry.Sample{GPUs: []registry.GPU{hwtest.GPU(0, total), hwtest.GPU(1, total)}}
	var wg sync.WaitGroup
	var admitted, refused atomic.Int64
	begin := make(chan struct{})
	over := make(chan string, 1)
	for i := range askers {
		wg.Go(func() {
			<-begin
			for round := range 5 {
				m := registry.Model{ModelID: fmt.Sprintf("m%d.%d", i, round)}
				instance := fmt.Sprintf("i%d.%d", i, round)
				in := PlanInput{Model: m, Device: registry.DeviceCUDA, Builds: registry.Devices, Sample: sample,
					NeedGPU: registry.Footprint{Estimated: int64(3+i%11) * 1e9}}
				_, ok := l.admit(m, instance, false, func(others []registry.Reservation) registry.Plan {
					in.Reservations = others
					return MakePlan(in)
				})
				held := map[string]int64{}
				for _, r := range l.all() {
					held[r.Device] += r.Bytes
				}
				for d, n := range held {
					if n > total {
						select {
						case over <- fmt.Sprintf("%s: %d bytes are promised", d, n):
						default:
						}
					}
				}
				if !ok {
					refused.Add(1)
					continue
				}
				admitted.Add(1)
				if i%3 == 0 { // some stay, so that it gets full
					continue
				}
				l.release(instance)
				l.release(instance)
			}
		})
	}
	close(begin)
	wg.Wait()
	select {
	case what := <-over:
		t.Error(what)
	default:
	}
	if admitted.Load() == 0 || refused.Load() == 0 {
		t.Errorf("%d were admitted and %d refused; the test wants both", admitted.Load(), refused.Load())
	}
}

func TestLedgerIsGivenBackOnce(t *testing.T) {
	t.Parallel()
	l := newLedger()
	admit := func(id, instance string, force bool, p registry.Plan) bool {
		_, ok := l.admit(registry.Model{ModelID: id}, instance, force, func([]registry.Reservation) registry.Plan { return p })
		return ok
	}
	two := registry.Plan{Verdict: registry.VerdictFits, Device: "cuda:0,1", GPUs: []int{0, 1}, Needs: registry.Footprint{Estimated: 11}}
	if !admit("a", "1", false, two) || !admit("b", "2", false, registry.Plan{Verdict: registry.VerdictFits, Device: "cpu", Needs: registry.Footprint{Estimated: 5, Given: 7}}) {
		t.Fatal("not admitted")
	}
	if got := l.all(); len(got) != 3 || got[0].Bytes != 7 || got[1].Bytes != 6 || got[2].Device != "cuda:1" {
		t.Errorf("got %+v", got)
	}
	if got := l.othersOf("a"); len(got) != 1 || got[0].ModelID != "b" {
		t.Errorf("others of a: %+v", got)
	}
	l.release("1")
	l.release("1")
	l.update("1", func(r *registry.Reservation) { t.Errorf("a row of a released instance: %+v", r) })
	if got := l.all(); len(got) != 1 || got[0].ModelID != "b" {
		t.Errorf("after the release: %+v", got)
	}
	full := registry.Plan{Verdict: registry.VerdictWaits, Device: "cpu", Needs: registry.Footprint{Estimated: 99}}
	if admit("c", "3", false, full) || !admit("c", "3", true, full) {
		t.Error("what does not fit is admitted with an override, and only then")
	}
	if admit("d", "4", true, registry.Plan{Verdict: registry.VerdictNever, Device: "cuda"}) {
		t.Error("no override makes a GPU")
	}
	if !admit("e", "5", false, registry.Plan{Verdict: registry.VerdictFits, Device: "remote", Needs: registry.Footprint{Estimated: 99}}) || len(l.all()) != 2 {
		t.Errorf("what runs elsewhere takes nothing here: %+v", l.all())
	}
}
