package hubtest

import (
	"encoding/json"
	"net/http"
	"slices"
)

// controlPath is where a program is told from outside how to behave. No address of the real Hub begins with it.
const controlPath = "/-/hubtest/"

// control answers:
//
//	POST   /-/hubtest/faults   a Fault, or a list of them, is added
//	DELETE /-/hubtest/faults   all faults end
//	POST   /-/hubtest/edges    a list of rates, as Options.Edges
//	GET    /-/hubtest/served   Served
//	DELETE /-/hubtest/served   the counters are set to zero
//	GET    /-/hubtest/requests the newest requests
func (h *Hub) control(w http.ResponseWriter, r *http.Request) {
	done := func() { w.WriteHeader(http.StatusNoContent) }
	p := &reply{ResponseWriter: w, hub: h, r: r, q: &Request{}}
	switch r.Method + " " + r.URL.Path[len(controlPath):] {
	case "POST faults":
		var list []Fault
		if !decode(w, r, &list) {
			return
		}
		for _, f := range list {
			if !slices.Contains(FaultKinds(), f.Kind) {
				say(w, http.StatusUnprocessableEntity, "text/plain", "there is no fault "+string(f.Kind))
				return
			}
		}
		h.Fault(list...)
		done()
	case "DELETE faults":
		h.Heal()
		done()
	case "POST edges":
		var rates []int64
		if !decode(w, r, &rates) {
			return
		}
		h.Edges(rates...)
		done()
	case "GET served":
		h.json(p, h.Served())
	case "DELETE served":
		h.Forget()
		done()
	case "GET requests":
		h.json(p, h.Requests())
	default:
		say(w, http.StatusNotFound, "text/plain", "no such control")
	}
}

// decode reads a list from the body, or one element of it.
func decode[T any](w http.ResponseWriter, r *http.Request, into *[]T) bool {
	var raw json.RawMessage
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&raw)
	if err == nil {
		if raw[0] == '[' {
			err = json.Unmarshal(raw, into)
		} else {
			var one T
			err = json.Unmarshal(raw, &one)
			*into = []T{one}
		}
	}
	if err != nil {
		say(w, http.StatusBadRequest, "text/plain", err.Error())
		return false
	}
	return true
}
