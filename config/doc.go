// Package config reads the files of the agent and the registrar: their shape, defaults, rules and complaints.
// JSON and TOML share one schema.
package config
