package llamacpp

import (
	"github.com/industriverse/llmmodelmanager/internal/loaders/metrics"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// metricNames are those of llama-server with --metrics. The share of the cache in use was taken out of it in 2025.
var metricNames = metrics.Names{
	Running: []string{"llamacpp:requests_processing"}, Waiting: []string{"llamacpp:requests_deferred"},
	KVCacheUse:   []string{"llamacpp:kv_cache_usage_ratio"},
	PromptTokens: []string{"llamacpp:prompt_tokens_total"}, GeneratedTokens: []string{"llamacpp:tokens_predicted_total"},
}

func activity(text []byte) (registry.Activity, error) { return metrics.Read(text, metricNames) }
