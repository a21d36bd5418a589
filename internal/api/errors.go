package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/skerry-dev/skerry"
)

// codeStreamClosed tells a client that the server let go of a stream while the
// command runs on; the Python client follows the command's log again.
const codeStreamClosed skerry.Code = "sandbox_stream_closed"

// statusOf maps each code to the one HTTP status it is answered with. The
// public clients repeat 429 and 5xx twice, resume a sandbox on 410 and on 422
// with a "…ing" code, and show every other 4xx to their user: a full disk or a
// source that cannot be fetched is therefore 422, not a server error.
var statusOf = map[skerry.Code]int{
	skerry.CodeBadRequest:           http.StatusBadRequest,
	skerry.CodeTimeoutInvalid:       http.StatusBadRequest,
	skerry.CodeImageInvalid:         http.StatusBadRequest,
	skerry.CodeUnauthorized:         http.StatusUnauthorized,
	skerry.CodeForbidden:            http.StatusForbidden,
	skerry.CodeNotFound:             http.StatusNotFound,
	skerry.CodeConflict:             http.StatusConflict,
	skerry.CodeSandboxStopped:       http.StatusGone,
	skerry.CodeSnapshotNotFound:     http.StatusGone,
	skerry.CodeSnapshotIncompatible: http.StatusUnprocessableEntity,
	skerry.CodeTooLarge:             http.StatusRequestEntityTooLarge,
	skerry.CodeSandboxStopping:      http.StatusUnprocessableEntity,
	skerry.CodeSandboxSnapshotting:  http.StatusUnprocessableEntity,
	skerry.CodeDiskFull:             http.StatusUnprocessableEntity,
	skerry.CodeSourceFailed:         http.StatusUnprocessableEntity,
	skerry.CodeRateLimited:          http.StatusTooManyRequests,
	skerry.CodeInternal:             http.StatusInternalServerError,
	skerry.CodeNotImplemented:       http.StatusNotImplemented,
	skerry.CodeUnavailable:          http.StatusServiceUnavailable,
	skerry.CodeStdinUnavailable:     http.StatusBadRequest,
	skerry.CodeStdinTimeout:         http.StatusGatewayTimeout,
	codeStreamClosed:                http.StatusServiceUnavailable,
}

// retryAfter is how many seconds a client waits before it repeats a call that
// was refused for load; clients give up when it is over 20.
const retryAfter = 1

// errorResponse is the body of every answer that is not a success.
type errorResponse struct {
	Error errorBody `json:"error"`
}

type errorBody struct {
	Code         skerry.Code `json:"code" doc:"What kind of failure it is; clients branch on it."`
	Message      string      `json:"message" doc:"What went wrong, for people."`
	Field        string      `json:"field,omitempty" doc:"Path of the request field at fault, such as resources.vcpus."`
	BytesWritten *int64      `json:"bytesWritten,omitempty" doc:"With command_stdin_timeout: how much of the input the command was given in all."`
	// RequestID is sent with server errors, whose cause is in the log only.
	RequestID string `json:"requestId,omitempty" doc:"What to look for in the server's log."`
}

// visible returns what a client may see of err. Anything that is not a
// *skerry.Error is "internal error" to it.
func visible(err error, requestID string) (int, errorBody) {
	var e *skerry.Error
	if !errors.As(err, &e) {
		return http.StatusInternalServerError, errorBody{
			Code: skerry.CodeInternal, Message: "internal error", RequestID: requestID,
		}
	}
	status, ok := statusOf[e.Code]
	if !ok {
		status = http.StatusInternalServerError
	}
	body := errorBody{Code: e.Code, Message: e.Message, Field: e.Field, BytesWritten: e.BytesWritten}
	// The message of a 400 names the field, since some clients show nothing
	// else.
	if e.Field != "" {
		body.Message = e.Field + ": " + e.Message
	}
	if status >= 500 && status != http.StatusNotImplemented {
		body.RequestID = requestID
	}
	return status, body
}

// logFailure writes the whole of an error that clients see only a part of.
func logFailure(ctx context.Context, log *slog.Logger, err error, status int) {
	level := slog.LevelDebug
	switch {
	case ctx.Err() != nil: // the client has gone; nothing failed here
	case status == http.StatusInternalServerError:
		level = slog.LevelError
	case status >= 500 && status != http.StatusNotImplemented:
		level = slog.LevelWarn
	}
	log.Log(context.WithoutCancel(ctx), level, "request failed", "status", status, "err", err)
}

// writeError answers a request whose answer has not begun.
func writeError(ctx context.Context, w http.ResponseWriter, log *slog.Logger, requestID string, err error) {
	status, body := visible(err, requestID)
	logFailure(ctx, log, err, status)
	h := w.Header()
	h.Del("Content-Length")
	switch status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	}
	writeJSON(w, status, errorResponse{Error: body})
}

// writeJSON answers with v. A value that cannot be encoded is a bug of ours,
// and a client that has gone is nobody's, so neither is reported.
func writeJSON(w http.ResponseWriter, status int, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		panic("encoding a response: " + err.Error())
	}
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(status)
	_, _ = w.Write(data)
}
