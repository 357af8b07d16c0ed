// Package registry is the domain of LLMModelManager: what a model is, the states it can be in and who moves
// it between them, what an operation, an event, a device and an error are. It holds no behaviour that needs a
// disk, a network or a clock of its own, uses the standard library only and imports nothing of ours, so that
// every other package can share its words.
package registry
