package headers

// ggmlType is how one ggml tensor type stores its elements: in blocks of so many elements and so many bytes.
type ggmlType struct {
	name         string
	block, bytes int64
}

// ggmlTypes follows enum ggml_type in ggml/include/ggml.h and GGML_QUANT_SIZES in gguf-py/gguf/constants.py of
// llama.cpp 11434. Numbers that are missing were withdrawn: no engine of today reads them.
var ggmlTypes = map[uint32]ggmlType{
	0:  {"f32", 1, 4},
	1:  {"f16", 1, 2},
	2:  {"q4_0", 32, 18},
	3:  {"q4_1", 32, 20},
	6:  {"q5_0", 32, 22},
	7:  {"q5_1", 32, 24},
	8:  {"q8_0", 32, 34},
	9:  {"q8_1", 32, 36},
	10: {"q2_k", 256, 84},
	11: {"q3_k", 256, 110},
	12: {"q4_k", 256, 144},
	13: {"q5_k", 256, 176},
	14: {"q6_k", 256, 210},
	15: {"q8_k", 256, 292},
	16: {"iq2_xxs", 256, 66},
	17: {"iq2_xs", 256, 74},
	18: {"iq3_xxs", 256, 98},
	19: {"iq1_s", 256, 50},
	20: {"iq4_nl", 32, 18},
	21: {"iq3_s", 256, 110},
	22: {"iq2_s", 256, 82},
	23: {"iq4_xs", 256, 136},
	24: {"i8", 1, 1},
	25: {"i16", 1, 2},
	26: {"i32", 1, 4},
	27: {"i64", 1, 8},
	28: {"f64", 1, 8},
	29: {"iq1_m", 256, 56},
	30: {"bf16", 1, 2},
	34: {"tq1_0", 256, 54},
	35: {"tq2_0", 256, 66},
	39: {"mxfp4", 32, 17},
	40: {"nvfp4", 64, 36},
	41: {"q1_0", 128, 18},
	42: {"q2_0", 64, 18},
}

// fileTypes names general.file_type: enum llama_ftype in include/llama.h of llama.cpp 11434. Those that are not
// quantised (F32, F16, BF16) are left out on purpose.
var fileTypes = map[int64]string{
	2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
	14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
	22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M",
	30: "IQ4_XS", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}

// plainTypes are the tensor types that are no quantisation.
var plainTypes = map[string]bool{"f32": true, "f16": true, "bf16": true, "f64": true, "i8": true, "i16": true, "i32": true, "i64": true}

// swaPattern says which layers of an architecture see only the sliding window: of each period all but one, the first or
// the last.
type swaPattern struct {
	period       int // 0: every layer
	denseFirst   bool
	windowIfNone int // the window that the engine uses when the header names none
}

// swaPatterns follows the calls of load_swa_pattern in src/models/*.cpp of llama.cpp 11434. Architectures that
// are not here use full attention in that engine, unless the header says it layer by layer.
var swaPatterns = map[string]swaPattern{
	"afmoe":           {period: 4},
	"cohere2":         {period: 4},
	"cohere2moe":      {period: 4, denseFirst: true},
	"exaone-moe":      {period: 4, windowIfNone: 128},
	"exaone4":         {period: 4},
	"gemma-embedding": {period: 6},
	"gemma2":          {period: 2, windowIfNone: 4096},
	"gemma3":          {period: 6},
	"gemma3n":         {period: 5},
	"gpt-oss":         {period: 2},
	"laguna":          {period: 4, denseFirst: true},
	"lfm2":            {},
	"llama4":          {period: 4, windowIfNone: 8192},
	"mellum":          {period: 4},
	"modern-bert":     {period: 3, denseFirst: true},
	"muse-glimmer":    {period: 4},
	"olmo2":           {period: 4},
	"plamo3":          {period: 8},
	"smallthinker":    {period: 4, denseFirst: true},
}

// fullAttention are architectures whose window that engine passes over even when the header says it layer by layer.
var fullAttention = map[string]bool{"phi3": true}

// windowed reports whether layer i sees only the window.
func (p swaPattern) windowed(i int) bool {
	switch {
	case p.period <= 0:
		return true
	case p.denseFirst:
		return i%p.period != 0
	}
	return i%p.period < p.period-1
}

// recurrentIntervals is full_attention_interval where the header does not say it: of so many layers the last one attends.
var recurrentIntervals = map[string]int{"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}

// encoderArchitectures answer embeddings and cannot chat: the encoders of src/llama-arch.cpp of llama.cpp 11434.
var encoderArchitectures = map[string]bool{
	"bert": true, "modern-bert": true, "nomic-bert": true, "nomic-bert-moe": true, "neo-bert": true,
	"jina-bert-v2": true, "jina-bert-v3": true, "eurobert": true, "gemma-embedding": true, "t5encoder": true,
}
