// Package lambda is the SDK and the in-pod server of lambdas written in Go.
//
// A lambda is one exported function in a package of any name:
//
//	package orders
//
//	import (
//		"context"
//
//		lambda "github.com/lambdamesh/lambdamesh/lambdas/runtimes/go"
//	)
//
//	func Main(ctx context.Context, event *lambda.Event) (any, error) {
//		var order struct{ OrderCode string }
//		if err := event.Decode(&order); err != nil {
//			return nil, err
//		}
//		return map[string]string{"seen": order.OrderCode}, nil
//	}
//
// A plain func Main(http.ResponseWriter, *http.Request) is taken too. The
// build writes the main function that calls [Start].
//
// What may enter: the standard library only, because every lambda links it and
// a build without network must succeed. When a lambda is built these files
// stand in for the module of the same path.
package lambda
