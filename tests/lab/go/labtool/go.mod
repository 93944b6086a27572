module sluice.dev/lab/labtool

go 1.24
