package acme

import (
	"context"
	"log/slog"
	"slices"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapLogger returns a logger for certmagic that writes to ours.
func zapLogger(log *slog.Logger) *zap.Logger { return zap.New(&logCore{handler: log.Handler()}) }

// maxLogged bounds a value that is logged; an authority says what it likes.
const maxLogged = 1024

// logCore is where zap's entries go. Only plain values are passed on: others
// are whole requests, challenges and accounts.
type logCore struct {
	handler slog.Handler
	fields  []zapcore.Field
}

// Enabled implements zapcore.LevelEnabler.
func (l *logCore) Enabled(level zapcore.Level) bool {
	return level >= zapcore.InfoLevel && l.handler.Enabled(context.Background(), slogLevel(level))
}

// slogLevel makes steps on the way debugging. What it all came to we log.
func slogLevel(level zapcore.Level) slog.Level {
	if level >= zapcore.WarnLevel {
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

// With implements zapcore.Core.
func (l *logCore) With(fields []zapcore.Field) zapcore.Core {
	return &logCore{l.handler, slices.Concat(l.fields, fields)}
}

// Check implements zapcore.Core.
func (l *logCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if l.Enabled(e.Level) {
		return ce.AddCore(e, l)
	}
	return ce
}

// Write implements zapcore.Core.
func (l *logCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slogLevel(e.Level)
	if e.LoggerName == "obtain" || e.LoggerName == "renew" {
		level = slog.LevelDebug // we report failures, with when it is tried again
	}
	if !l.handler.Enabled(context.Background(), level) {
		return nil
	}
	r := slog.NewRecord(e.Time, level, "acme: "+bounded(e.Message), 0)
	for _, f := range slices.Concat(l.fields, fields) {
		if a, ok := attr(f); ok {
			r.AddAttrs(a)
		}
	}
	return l.handler.Handle(context.Background(), r)
}

// Sync implements zapcore.Core.
func (l *logCore) Sync() error { return nil }

// attr passes a field on if it is of a kind, and has a name, that is known to
// hold no secret.
func attr(f zapcore.Field) (slog.Attr, bool) {
	switch f.Key {
	case "identifier", "identifiers", "subject", "subjects", "server_name", "issuer", "ca", "challenge_type", "dns_name", "zone",
		"error", "remaining", "new_expiration", "attempt", "status_code":
	default:
		return slog.Attr{}, false
	}
	if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
		return slog.String(f.Key, bounded(err.Error())), true
	}
	switch f.Type {
	case zapcore.StringType:
		return slog.String(f.Key, bounded(f.String)), true
	case zapcore.Int64Type, zapcore.Int32Type:
		return slog.Int64(f.Key, f.Integer), true
	case zapcore.DurationType, zapcore.TimeType, zapcore.ArrayMarshalerType:
		e := zapcore.NewMapObjectEncoder()
		f.AddTo(e)
		return slog.Any(f.Key, e.Fields[f.Key]), true
	}
	return slog.Attr{}, false
}

func bounded(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}
