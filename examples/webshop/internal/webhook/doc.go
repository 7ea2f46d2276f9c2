// Package webhook tells others over HTTP what happened, signed as Standard
// Webhooks (https://www.standardwebhooks.com) has it, and again until they have
// taken it.
//
// What may enter: how a call is signed and repeated. What it tells is its
// caller's.
package webhook
