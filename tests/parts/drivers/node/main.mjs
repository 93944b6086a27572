// Runs one of the Node drivers: main.mjs DRIVER [OPERATION TO LEAVE OUT...].
await import(`./with-${process.argv[2]}.mjs`);
