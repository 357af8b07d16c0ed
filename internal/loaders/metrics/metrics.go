// Package metrics reads what engines tell of their work in the text format of Prometheus.
package metrics

import (
	"bytes"
	"fmt"
	"math"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Names are what an engine calls its metrics. Where versions differ there are several: the first that an answer has counts.
type Names struct {
	Running, Waiting              []string // gauges
	KVCacheUse                    []string // a gauge, 0 to 1
	PromptTokens, GeneratedTokens []string // counters
	Preemptions                   []string // a counter
	FirstToken, WholeAnswer       []string // histograms or summaries, in seconds
}

// Read returns what text says of the metrics in n, without a time. An engine of several parts tells each of them apart:
// their numbers are added up, and of the caches the fullest counts. What is missing, or is no number that can be, stays
// nil. CodeUnavailable if text is not in that format.
func Read(text []byte, n Names) (registry.Activity, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		return registry.Activity{}, &registry.Error{Code: registry.CodeUnavailable, Op: "metrics.Read", Msg: fmt.Sprintf("The engine's metrics cannot be read: %v", err), Err: err}
	}
	find := func(names []string) []*dto.Metric {
		for _, name := range names {
			if f := families[name]; f != nil {
				return f.GetMetric()
			}
		}
		return nil
	}
	return registry.Activity{
		Running: count(find(n.Running)), Waiting: count(find(n.Waiting)), KVCacheUse: fullest(find(n.KVCacheUse)),
		PromptTokens: count(find(n.PromptTokens)), GeneratedTokens: count(find(n.GeneratedTokens)), Preemptions: count(find(n.Preemptions)),
		FirstTokenSeconds: mean(find(n.FirstToken)), WholeAnswerSeconds: mean(find(n.WholeAnswer)),
	}, nil
}

// value is a number of whichever kind it is said to be.
func value(m *dto.Metric) float64 {
	switch {
	case m.Gauge != nil:
		return m.GetGauge().GetValue()
	case m.Counter != nil:
		return m.GetCounter().GetValue()
	case m.Untyped != nil:
		return m.GetUntyped().GetValue()
	}
	return math.NaN()
}

// count adds up what is counted. Nil for what cannot be counted: less than nothing, or more than numbers hold exactly.
func count(ms []*dto.Metric) *int64 {
	var sum float64
	for _, m := range ms {
		sum += value(m)
	}
	if len(ms) == 0 || math.IsNaN(sum) || sum < 0 || sum > 1<<53 {
		return nil
	}
	n := int64(math.Round(sum))
	return &n
}

// fullest is the largest share.
func fullest(ms []*dto.Metric) *float64 {
	most := -1.0
	for _, m := range ms {
		v := value(m)
		if math.IsNaN(v) || v < 0 || v > 1 {
			return nil
		}
		most = max(most, v)
	}
	if most < 0 {
		return nil
	}
	return &most
}

// mean is the average of all that was observed, in seconds. Nil if nothing was.
func mean(ms []*dto.Metric) *float64 {
	var sum, n float64
	for _, m := range ms {
		switch {
		case m.Histogram != nil:
			sum, n = sum+m.GetHistogram().GetSampleSum(), n+float64(m.GetHistogram().GetSampleCount())
		case m.Summary != nil:
			sum, n = sum+m.GetSummary().GetSampleSum(), n+float64(m.GetSummary().GetSampleCount())
		}
	}
	avg := sum / n
	if n <= 0 || math.IsNaN(avg) || avg < 0 || avg > 1e9 {
		return nil
	}
	return &avg
}
