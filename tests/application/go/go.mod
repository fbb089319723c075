module sidestream.invalid/application

go 1.25
