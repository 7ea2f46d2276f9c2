module github.com/lambdamesh/lambdamesh/lambdas/runtimes/go

go 1.24
