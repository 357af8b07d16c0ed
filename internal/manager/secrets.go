package manager

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/store"
)

// secretEnv is what the names of environment variables begin with that hold secrets. No other variable can be read by
// naming it in a model.
const secretEnv = "LLMM_SECRET_"

// withSecrets returns the model with the values of the stored secrets that its loader parameters refer to: those of its
// team, then those of every team, then LLMM_SECRET_NAME. It is for sources and loaders only: what it returns is
// never stored, shown or logged. CodeInvalid names the parameter when there is no such secret.
func (m *Manager) withSecrets(ctx context.Context, model registry.Model) (registry.Model, error) {
	team := model.WithDefaults().Team
	params, err := registry.ReplaceSecrets(model.CustomLoaderParams, func(field, name string) (string, error) {
		if err := registry.ValidateSecretName(name); err != nil {
			return "", noSecret(field, "names no secret: the name "+err.Error())
		}
		value, ok, err := m.store.SecretValue(ctx, team, name)
		if err != nil || ok {
			return value, err
		}
		env := secretEnv + strings.Map(envRune, name)
		if value, ok := os.LookupEnv(env); ok && value != "" {
			return value, nil
		}
		return "", noSecret(field, fmt.Sprintf("refers to the secret %q, which the team %s does not have. Store it with llmm secret set %s, or set %s for the server", name, team, name, env))
	})
	model.CustomLoaderParams = params
	return model, err
}

func noSecret(field, msg string) error {
	return &registry.Error{Code: registry.CodeInvalid, Op: "manager.withSecrets", Msg: "The model's loader parameters cannot be used", Fields: []registry.FieldError{{Field: field, Msg: msg}}}
}

func envRune(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z':
		return r - 'a' + 'A'
	case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
		return r
	}
	return '_'
}

// maxSecret is how long a secret may be, in bytes: a key file in PEM fits.
const maxSecret = 64 << 10

// Secrets lists the secrets of these teams (nil: all) and those of every team, without their values, with the models of
// these teams that use them.
func (m *Manager) Secrets(ctx context.Context, teams []string) ([]registry.Secret, error) {
	list, err := m.store.ListSecrets(ctx, teams)
	if err != nil {
		return nil, err
	}
	users, err := m.store.SecretUsers(ctx, teams)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].UsedBy = users[store.SecretKey{Team: list[i].Team, Name: list[i].Name}]; list[i].UsedBy == nil {
			list[i].UsedBy = []string{}
		}
	}
	return list, nil
}

// PutSecret stores a secret, new or not. CodeInvalid for its name or value, CodeNotFound for its team.
func (m *Manager) PutSecret(ctx context.Context, s registry.Secret, value string) (created bool, err error) {
	var fields []registry.FieldError
	if err := registry.ValidateSecretName(s.Name); err != nil {
		fields = append(fields, registry.FieldError{Field: "name", Msg: err.Error()})
	}
	switch {
	case value == "":
		fields = append(fields, registry.FieldError{Field: "value", Msg: "is required"})
	case len(value) > maxSecret:
		fields = append(fields, registry.FieldError{Field: "value", Msg: fmt.Sprintf("is longer than %d bytes", maxSecret)})
	}
	if len(fields) > 0 {
		return false, &registry.Error{Code: registry.CodeInvalid, Op: "manager.PutSecret", Msg: "The secret is not valid", Fields: fields}
	}
	return m.store.PutSecret(ctx, s, value)
}

// DeleteSecret removes a secret. CodeNotFound; CodeConflict when models use it, unless force is set: they cannot be fetched
// or loaded then until there is another one.
func (m *Manager) DeleteSecret(ctx context.Context, team, name string, force bool) error {
	return m.store.DeleteSecret(ctx, team, name, force)
}
