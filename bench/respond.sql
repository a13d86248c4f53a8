SELECT respond('hello');
