package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/industriverse/llmmodelmanager/internal/loaders/pytorch/pytorchtest"
	"github.com/industriverse/llmmodelmanager/internal/sources/hubtest"
)

// The shape of the tiny BERTs that stand for the two models of the guide.
const (
	bertHidden, bertInner, bertLayers, bertPlaces = 32, 64, 2, 128
)

// bertWords are the lines of vocab.txt: enough for every word of lower-case letters.
func bertWords() []string {
	words := []string{"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "the", "cat", "dog", "sat"}
	for c := 'a'; c <= 'z'; c++ {
		words = append(words, string(c), "##"+string(c))
	}
	return words
}

// tinyBERT is the weights of a BERT with its head for masked words, of random numbers that are the same every time, and how
// many of them are the model without the head.
func tinyBERT() (tensors []pytorchtest.Tensor, body int64) {
	rnd := rand.New(rand.NewPCG(1, 2))
	add := func(name string, shape ...int) {
		n := 1
		for _, d := range shape {
			n *= d
		}
		var data []byte
		for range n {
			v := float32(rnd.NormFloat64() * 0.2)
			if strings.HasSuffix(name, "LayerNorm.weight") {
				v++
			}
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		tensors = append(tensors, pytorchtest.Tensor{Name: name, Class: "FloatStorage", Shape: shape, Data: data})
		if strings.HasPrefix(name, "bert.") {
			body += int64(n)
		}
	}
	linear := func(name string, out, in int) { add(name+".weight", out, in); add(name+".bias", out) }
	norm := func(name string) { add(name+".LayerNorm.weight", bertHidden); add(name+".LayerNorm.bias", bertHidden) }
	words := len(bertWords())
	add("bert.embeddings.word_embeddings.weight", words, bertHidden)
	add("bert.embeddings.position_embeddings.weight", bertPlaces, bertHidden)
	add("bert.embeddings.token_type_embeddings.weight", 2, bertHidden)
	norm("bert.embeddings")
	for i := range bertLayers {
		layer := fmt.Sprintf("bert.encoder.layer.%d.", i)
		for _, part := range []string{"query", "key", "value"} {
			linear(layer+"attention.self."+part, bertHidden, bertHidden)
		}
		linear(layer+"attention.output.dense", bertHidden, bertHidden)
		norm(layer + "attention.output")
		linear(layer+"intermediate.dense", bertInner, bertHidden)
		linear(layer+"output.dense", bertHidden, bertInner)
		norm(layer + "output")
	}
	linear("bert.pooler.dense", bertHidden, bertHidden)
	linear("cls.predictions.transform.dense", bertHidden, bertHidden)
	norm("cls.predictions.transform")
	add("cls.predictions.bias", words)
	return tensors, body
}

// bertConfig is a config.json with more in it.
func bertConfig(more map[string]any) map[string]any {
	c := map[string]any{"hidden_size": bertHidden, "hidden_act": "gelu", "initializer_range": 0.02, "vocab_size": len(bertWords()), "hidden_dropout_prob": 0.1,
		"num_attention_heads": 2, "type_vocab_size": 2, "max_position_embeddings": bertPlaces, "num_hidden_layers": bertLayers, "intermediate_size": bertInner,
		"attention_probs_dropout_prob": 0.1}
	for k, v := range more {
		c[k] = v
	}
	return c
}

// hubOfTheGuide is a Hub with the guide's first model, and the number of its parameters. As the real repository, it has no
// tokenizer_config.json, and a config.json from before there was a model_type.
func hubOfTheGuide(t *testing.T) (hub *hubtest.Hub, parameters int64) {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "prajjwal1", "bert-tiny")
	tensors, body := tinyBERT()
	write(t, filepath.Join(dir, "config.json"), jsonOf(t, bertConfig(nil)))
	write(t, filepath.Join(dir, "vocab.txt"), []byte(strings.Join(bertWords(), "\n")+"\n"))
	write(t, filepath.Join(dir, "pytorch_model.bin"), pytorchtest.Save(t, tensors...))
	write(t, filepath.Join(dir, "README.md"), []byte("---\nlicense: mit\n---\n"))
	hub, err := hubtest.Start(hubtest.Options{Root: root, LFSSize: 10_000}) // so that the weights come from the second host, as on the Hub
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := hub.Close(); err != nil {
			t.Error(err)
		}
	})
	return hub, body
}

// house is the code that the guide's second model brings.
const house = `from transformers import BertConfig, BertForMaskedLM


class HouseConfig(BertConfig):
    model_type = "house"


class HouseForMaskedLM(BertForMaskedLM):
    config_class = HouseConfig
`

// customModel makes the guide's second model in dir: safetensors with code of its own, and the tokenizer in a folder of its
// own. It returns the number of its parameters.
func customModel(t *testing.T, dir string) (parameters int64) {
	t.Helper()
	write(t, filepath.Join(dir, "house.py"), []byte(house))
	write(t, filepath.Join(dir, "config.json"), jsonOf(t, bertConfig(map[string]any{"model_type": "house", "architectures": []string{"HouseForMaskedLM"},
		"auto_map": map[string]string{"AutoConfig": "house.HouseConfig", "AutoModelForMaskedLM": "house.HouseForMaskedLM"}})))
	write(t, filepath.Join(dir, "tokenizer", "vocab.txt"), []byte(strings.Join(bertWords(), "\n")+"\n"))
	write(t, filepath.Join(dir, "tokenizer", "tokenizer_config.json"), jsonOf(t, map[string]any{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": bertPlaces}))
	tensors, _ := tinyBERT()
	header, data := map[string]any{}, []byte(nil)
	for _, x := range tensors {
		if strings.HasPrefix(x.Name, "bert.pooler.") { // a model for masked words has none
			continue
		}
		header[x.Name] = map[string]any{"dtype": "F32", "shape": x.Shape, "data_offsets": []int{len(data), len(data) + len(x.Data)}}
		data = append(data, x.Data...)
	}
	text := jsonOf(t, header)
	write(t, filepath.Join(dir, "model.safetensors"), append(append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), data...))
	return int64(len(data) / 4)
}

func jsonOf(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
