module retort

go 1.19
