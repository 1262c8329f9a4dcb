//go:build race

package zookeeper_test

const raceEnabled = true
